//! A Hugging Face model directory, opened once.

use super::adapter::{AdapterInit, AdapterShape, AdapterWeights};
use super::config::{CONFIG, ConfigFiles, ModelConfig, check_dir};
use super::identity;
use super::json::parse_json;
use super::nf4_file;
use super::params::ParamTable;
use super::peft;
use super::quantized::Quantized;
use super::source::Source;
use super::stored::Stored;
use crate::data::text::{TextTokenizer, TokenizerIdentity, TokenizerOptions};
use crate::error::{Error, Result};
use crate::files::{self, Inside, MOST_JSON, MOST_TEXT, MOST_TOKENIZER};
use crate::hub::Repo;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// A Hugging Face model directory: `config.json`, safetensors, tokenizer. Whoever works on a model opens it once and passes
/// it on; a clone is another handle to the same.
///
/// [`ModelDir::open`] reads the configuration alone. The weights are opened, and hashed, when something asks for them, and
/// never twice: all that was made from one `ModelDir` (a reference, a policy, their identity, an export) comes from the
/// same files and the same configuration, whatever is put into the directory's place meanwhile. What must not happen is that
/// a file is written to in place, or cut short: replace it by a rename.
///
/// ```
/// use fusedpo::backend::cpu::Cpu;
/// use fusedpo::model::{Model, ModelConfig, ModelDir, SaveDtype, export};
///
/// # let json = serde_json::json!({
/// #     "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 50,
/// #     "num_attention_heads": 4, "max_position_embeddings": 64,
/// # });
/// # let config = ModelConfig::parse("config.json".as_ref(), json.as_object().unwrap())?;
/// # let folder = fusedpo::files::scratch_folder()?;
/// # let (path, copy) = (folder.path().join("model"), folder.path().join("copy"));
/// let be = Cpu::<f32>::new()?;
/// # let made = Model::random(&be, config, 1, 64)?;
/// # export(&be, &made, None, None, &path, SaveDtype::F32)?;
/// let dir = ModelDir::open(&path)?;
/// let model = Model::load(&be, &dir, 64)?; // for rows of up to 64 tokens
/// assert_eq!(model.weights.len(), model.table.len);
///
/// // The same weights elsewhere are the same model.
/// export(&be, &model, None, None, &copy, SaveDtype::Source)?;
/// assert_eq!(ModelDir::open(&copy)?.identity()?, dir.identity()?);
/// # Ok::<(), fusedpo::Error>(())
/// ```
#[derive(Clone)]
pub struct ModelDir(Arc<Inner>);

struct Inner {
    path: PathBuf,
    folder: Inside,
    config: ModelConfig,
    files: ConfigFiles,
    weights: OnceLock<Weights>,
    identity: OnceLock<[u8; 32]>,
    side_files: OnceLock<SideFiles>,
    tokenizer: OnceLock<Option<TokenizerIdentity>>,
    adapter: Option<Adapted>,
    /// The directory as it is stored, of a handle that holds its weights in another way.
    stored: Option<ModelDir>,
}

/// What makes a model with an adapter of a directory.
struct Adapted {
    base: ModelDir,
    weights: AdapterWeights,
}

/// Names and contents of what travels with the weights.
pub(super) type SideFiles = Vec<(String, Vec<u8>)>;

/// The weights, opened, and the table that they were checked against.
pub(super) struct Weights {
    pub table: ParamTable,
    pub source: Arc<Source>,
}

impl fmt::Debug for ModelDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModelDir").field(&self.0.path).finish()
    }
}

impl ModelDir {
    /// Reads and checks the configuration of the directory `path`: as [`ModelConfig::load`].
    pub fn open(path: &Path) -> Result<Self> {
        check_dir(path)?;
        let folder = Inside::new(path)?;
        let (config, files) = ModelConfig::read(&folder)?;
        let (weights, identity, side_files, tokenizer) = Default::default();
        let (path, adapter, stored) = (path.to_owned(), None, None);
        let inner = Inner { path, folder, config, files, weights, identity, side_files, tokenizer, adapter, stored };
        Ok(Self(Arc::new(inner)))
    }

    /// [`ModelDir::open`], and with `adapter` [`ModelDir::with_adapter`].
    pub fn open_with(path: &Path, adapter: Option<&Path>) -> Result<Self> {
        let base = Self::open(path)?;
        match adapter {
            Some(adapter) => base.with_adapter(adapter),
            None => Ok(base),
        }
    }

    /// The shape alone of what [`ModelDir::open_with`] opens; of a model that is not here, `path` may be a file of any name that
    /// holds a config.json. Of the model's weights nothing is looked at.
    pub fn shape(path: &Path, adapter: Option<&Path>) -> Result<ModelConfig> {
        if !path.is_file() {
            return Ok(Self::open_with(path, adapter)?.config().clone());
        }
        let bytes = files::read(path, MOST_JSON).map_err(|e| e.doing("read the configuration"))?;
        let config = ModelConfig::parse(path, &parse_json(path, &bytes)?)?;
        let adapter = adapter.map(|dir| peft::read(&Inside::new(dir)?, &config)).transpose()?;
        Ok(ModelConfig { adapter: adapter.map(|a| a.shape), ..config })
    }

    /// This model with the adapter in the folder `path`, in PEFT's form. Tokenizer, template and end tokens are the folder's
    /// where it has them.
    ///
    /// Errors: [`Error::File`]: no adapter, one of another base, or what is not supported, by name.
    pub fn with_adapter(&self, path: &Path) -> Result<Self> {
        self.with_changed_adapter(path, |_| Ok(()))
    }

    /// [`ModelDir::with_adapter`] to be trained, which drops `dropout` of its input meanwhile; `None`: what its files say.
    ///
    /// Errors: a dropout of 1 as well.
    pub fn with_adapter_dropping(&self, path: &Path, dropout: Option<f64>) -> Result<Self> {
        self.with_changed_adapter(path, |shape| {
            shape.dropout = dropout.unwrap_or(shape.dropout);
            shape.check_trains()
        })
    }

    fn with_changed_adapter(&self, path: &Path, change: impl Fn(&mut AdapterShape) -> Result<()>) -> Result<Self> {
        if !path.is_dir() {
            return Err(Error::file(path, "is not a folder; give one with an adapter"));
        }
        let folder = Inside::new(path)?;
        let mut weights = peft::read(&folder, self.config())?;
        change(&mut weights.shape)?;
        let mut files = self.files().clone();
        let mut config = self.config().clone();
        if let Some((ids, bytes)) = ModelConfig::end_tokens(&folder)? {
            if !ids.is_empty() {
                config.eos_token_ids = ids;
            }
            files.generation = Some(bytes);
        }
        let folder = if folder.has(TOKENIZER) { folder } else { self.0.folder.clone() };
        Ok(self.adapted(weights, (folder, config, files)))
    }

    /// This model with a new adapter, which does not change what it computes yet.
    pub fn with_new_adapter(&self, shape: AdapterShape, init: AdapterInit, seed: u64) -> Result<Self> {
        shape.check_trains()?;
        let weights = peft::fresh(self.config(), shape, init, seed)?;
        Ok(self.adapted(weights, (self.0.folder.clone(), self.config().clone(), self.files().clone())))
    }

    fn adapted(&self, weights: AdapterWeights, (folder, config, files): (Inside, ModelConfig, ConfigFiles)) -> Self {
        let config = ModelConfig { adapter: Some(weights.shape), ..config };
        let path = weights.path.clone().unwrap_or_else(|| self.0.path.clone());
        let adapter = Some(Adapted { base: self.clone(), weights });
        let (weights, identity, side_files, tokenizer) = Default::default();
        let stored = None;
        Self(Arc::new(Inner { path, folder, config, files, weights, identity, side_files, tokenizer, adapter, stored }))
    }

    /// This model with the linear weights of its blocks in four bits (NF4): what transformers and bitsandbytes make of it in
    /// its own dtype, to the byte. An adapter comes after.
    ///
    /// Errors: [`Error::File`] where they are in four bits already; [`Error::Usage`] where it has an adapter.
    pub fn quantized(&self, how: Quantized) -> Result<Self> {
        if self.adapter().is_some() {
            return Err(Error::usage("quantize the model first: its adapter comes after"));
        }
        if self.0.config.quantized.is_some() {
            return Err(quantized_already(&self.0.path));
        }
        Ok(self.held(Some(how)))
    }

    /// [`ModelDir::quantized`] where `how` says so.
    pub fn quantized_if(&self, how: Option<Quantized>) -> Result<Self> {
        how.map_or_else(|| Ok(self.clone()), |how| self.quantized(how))
    }

    /// This model, without its adapter, with dense weights: of those in four bits, the numbers that they stand for.
    pub fn dequantized(&self) -> Self {
        let base = self.base();
        match base.0.config.quantized {
            Some(_) => base.held(None),
            None => base.clone(),
        }
    }

    /// Whether its files have weights in four bits.
    pub fn is_stored_quantized(&self) -> bool {
        self.as_stored().0.config.quantized.is_some()
    }

    /// The directory as it is stored.
    pub(super) fn as_stored(&self) -> &Self {
        self.base().0.stored.as_ref().unwrap_or(self.base())
    }

    fn held(&self, quantized: Option<Quantized>) -> Self {
        let Inner { path, folder, files, .. } = &*self.0;
        let config = ModelConfig { quantized, ..self.0.config.clone() };
        let (weights, identity, side_files, tokenizer) = Default::default();
        let (path, folder, files) = (path.clone(), folder.clone(), files.clone());
        let (adapter, stored) = (None, Some(self.as_stored().clone()));
        Self(Arc::new(Inner { path, folder, config, files, weights, identity, side_files, tokenizer, adapter, stored }))
    }

    /// The model without its adapter, where it has one.
    pub fn base(&self) -> &Self {
        self.0.adapter.as_ref().map_or(self, |a| &a.base)
    }

    /// The adapter's weights, where there is one.
    pub(super) fn adapter(&self) -> Option<&AdapterWeights> {
        self.0.adapter.as_ref().map(|a| &a.weights)
    }

    /// Whether this computes what `other` does, to the bit: it is the same, or has a new adapter beside it.
    pub fn computes_as(&self, other: &Self) -> bool {
        self.is(other) || self.adapter().is_some_and(|a| a.path.is_none()) && self.base().is(other)
    }

    /// [`ModelDir::open`] of a second model, which may be this one: where `path` names the same directory, this is it. Where
    /// this one's weights were quantized, so are the other's.
    pub fn open_other(&self, path: &Path) -> Result<Self> {
        if files::paths::is_same(&self.0.path, path) {
            return Ok(self.clone());
        }
        let other = Self::open(path)?;
        let how = self.0.config.quantized.filter(|_| !self.is_stored_quantized() && !other.is_stored_quantized());
        other.quantized_if(how)
    }

    /// Whether both are handles to the same directory, opened once.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The directory, as it was named.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// [`ModelDir::path`], or the name on the hub of one that came from there.
    pub fn name(&self) -> PathBuf {
        Repo::of_snapshot(&self.0.path).map_or_else(|| self.0.path.clone(), |repo| repo.name())
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.0.config
    }

    /// Identity of the weights and of what the configuration makes of them, without loading them. It does not depend on
    /// sharding or file names; it does on the stored dtype. 540 MB take about 0.3 s on two cores, the first time.
    ///
    /// Errors: as [`super::Model::load`].
    pub fn identity(&self) -> Result<[u8; 32]> {
        if let Some(known) = self.0.identity.get() {
            return Ok(*known);
        }
        let Weights { table, source } = self.weights()?;
        let stored = Stored::Files(source, self.adapter());
        stored.check_whole()?;
        let hash = match (&self.0.adapter, &self.0.stored) {
            (Some(adapter), _) => identity::hash_adapter(adapter.base.identity()?, &adapter.weights, table),
            (None, Some(dir)) => identity::hash_held(dir.identity()?, self.0.config.quantized),
            (None, None) => identity::hash(&self.0.config, table, stored)?,
        };
        Ok(*self.0.identity.get_or_init(|| hash))
    }

    /// Its tokenizer without a chat template, and with the EOS text `eos` where one is given in place of its own; `None`
    /// where the directory has no `tokenizer.json`. Its files are read once.
    ///
    /// Errors: as [`TextTokenizer::load`].
    pub fn tokenizer(&self, eos: Option<&str>) -> Result<Option<TextTokenizer>> {
        let files = self.side_files()?;
        let get = |name: &str| {
            Ok(match name {
                CONFIG => Some(self.files().config.clone()),
                _ => files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.clone()),
            })
        };
        TextTokenizer::of_files(&self.0.path, &get, eos)
    }

    /// Its tokenizer, as [`TextTokenizer::load`] reads it.
    pub fn load_tokenizer(&self, options: &TokenizerOptions) -> Result<TextTokenizer> {
        let folder: PathBuf = self.0.folder.path("").components().collect();
        TextTokenizer::load_with(&folder, &self.files().config, options)
    }

    /// Which tokenizer that is; read once.
    pub fn tokenizer_identity(&self) -> Result<Option<TokenizerIdentity>> {
        if let Some(known) = self.0.tokenizer.get() {
            return Ok(*known);
        }
        let identity = self.tokenizer(None)?.map(|t| t.identity());
        Ok(*self.0.tokenizer.get_or_init(|| identity))
    }

    /// Reads what an export copies beside the weights: an export of this model writes what it was now, and a file that
    /// cannot be copied is known before the work, not after it.
    ///
    /// Errors: [`Error::File`] for what is no regular file of this directory, or longer than any of its kind;
    /// [`Error::Io`].
    pub fn read_side_files(&self) -> Result<()> {
        self.side_files().map(drop)
    }

    pub(super) fn side_files(&self) -> Result<&SideFiles> {
        if let Some(known) = self.0.side_files.get() {
            return Ok(known);
        }
        let files = side_files(&self.0.folder)?;
        Ok(self.0.side_files.get_or_init(|| files))
    }

    /// The weights, opened and checked against the configuration.
    pub(super) fn weights(&self) -> Result<&Weights> {
        if let Some(weights) = self.0.weights.get() {
            return Ok(weights);
        }
        let table = ParamTable::new(&self.0.config)?;
        let source = match (&self.0.adapter, &self.0.stored) {
            (Some(Adapted { base: under, .. }), _) | (None, Some(under)) => under.weights()?.source.clone(),
            (None, None) => {
                let source = Source::open(&self.0.folder, &self.0.config, &table)?;
                if let Some(Quantized { double }) = table.quantized {
                    table.nf4.iter().try_for_each(|p| nf4_file::check(&source, p, double))?;
                }
                Arc::new(source)
            }
        };
        Ok(self.0.weights.get_or_init(|| Weights { table, source }))
    }

    /// The configuration's files as they were read.
    pub(super) fn files(&self) -> &ConfigFiles {
        &self.0.files
    }
}

/// The error of a model that is to be quantized, and is already.
pub(crate) fn quantized_already(path: &Path) -> Error {
    let why =
        "its weights are in four bits already (`quantization_config` in config.json): leave `options.quantize` out";
    Error::file(path, why)
}

const TOKENIZER: &str = "tokenizer.json";

/// What travels with the weights, where the source has it. `generation_config.json` does too: it was read with the
/// configuration.
pub(super) const SIDE_FILES: &[&str] = &[
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// Folder of further chat templates, by name.
pub(super) const NAMED_TEMPLATES: &str = "additional_chat_templates";

/// The side files of a folder, read.
pub(super) fn side_files(folder: &Inside) -> Result<SideFiles> {
    let read = |name: &&str| folder.read(name, MOST_TOKENIZER).map(|b| b.map(|bytes| ((*name).to_owned(), bytes)));
    let mut files: SideFiles = SIDE_FILES.iter().filter_map(|name| read(name).transpose()).collect::<Result<_>>()?;
    let names = folder.names(NAMED_TEMPLATES)?;
    let names = names.iter().filter(|name| name.ends_with(".jinja")).map(|name| format!("{NAMED_TEMPLATES}/{name}"));
    for name in names {
        files.extend(folder.read(&name, MOST_TEXT)?.map(|bytes| (name, bytes)));
    }
    Ok(files)
}
