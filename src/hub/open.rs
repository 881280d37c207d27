//! A repository, opened: asked for, or found in the cache.

use super::fetch::Opened;
use super::http::{self, Failure};
use super::listing;
use super::name::Repo;
use super::shared::Hub;
use crate::error::{Error, Result};
use crate::observe::{Event, Observe};

impl Hub {
    /// What `repo` holds at its revision, as it stands now. Where the hub cannot be asked, or does not answer, as it stood when
    /// it was downloaded last, with a warning; a commit whose list is in the cache asks nobody.
    ///
    /// Errors: [`Error::File`] named by the repository: what the hub does not know or does not give, and what is not in the
    /// cache when nobody can be asked; [`Error::Io`] for a network that fails.
    pub fn open(&self, repo: &Repo, observe: &mut dyn Observe) -> Result<Opened<'_>> {
        self.find(repo, observe)?.ok_or_else(|| http::no_revision(repo))
    }

    /// [`Hub::open`]; `None` where the repository is there and has no such revision.
    pub fn find(&self, repo: &Repo, observe: &mut dyn Observe) -> Result<Option<Opened<'_>>> {
        let known = self.cache.listing(repo);
        if let Some(known) = known.as_ref().filter(|k| k.whole && repo.is_pinned()) {
            return Ok(Some(Opened::new(self, repo, known.clone(), true)));
        }
        if self.offline {
            let why = || {
                format!(
                    "is not in the cache ({}), and the hub is not asked, as HF_HUB_OFFLINE says: unset it, or download the \
                     repository first",
                    self.cache.folder(repo).display()
                )
            };
            let known = known.ok_or_else(|| Error::file(repo.name(), why()))?;
            return Ok(Some(Opened::new(self, repo, known, false)));
        }
        match listing::ask(&self.client, repo, observe) {
            Ok(listing) => Ok(Some(Opened::new(self, repo, listing, true))),
            Err(failure) if failure.is_missing_revision() => Ok(None),
            Err(Failure::Error(e)) => Err(e),
            Err(failure) => {
                let why = failure.into_error(&self.client, repo, None);
                let Some(known) = known else { return Err(why) };
                let at = &known.commit[..8];
                observe.tell(&Event::Warning(&format!("{why}; what is in the cache (commit {at}) is used")))?;
                Ok(Some(Opened::new(self, repo, known, false)))
            }
        }
    }
}
