//! A hub and a cache, for those who ask and those who bring.

use super::cache::Cache;
use super::http::Client;
use super::settings::Settings;
use crate::error::Result;

/// A hub and a cache.
pub struct Hub {
    pub(super) client: Client,
    pub(super) cache: Cache,
    pub(super) offline: bool,
}

impl Hub {
    /// As `settings` say. Nothing is connected to yet. Errors: [`Error::Usage`](crate::error::Error::Usage) for an address, a token or certificates that
    /// cannot be used.
    pub fn new(settings: Settings) -> Result<Self> {
        let cache = Cache::new(settings.cache.clone());
        Ok(Self { offline: settings.offline, client: Client::new(settings)?, cache })
    }
}
