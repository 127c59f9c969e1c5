//! The source that is a prefix in a bucket of an object store, or one object in it.
//!
//! The listing pins the versions: every read names the ETag that was listed, and an object that is another one by then
//! is an error.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientConfigKey, Error, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
};

use super::listing::{MAX_BLOBS, entries};
use super::told::{no_credentials, told, trouble};
use super::{Fetch, Pending, Remote, runtime, wait};
use crate::finding::{Failure, Finding};
use crate::format::source::{Blob, Entry, Identity, Opened, Source, Trouble, code, failure};
use crate::fs::handles::Replaced;
use crate::sync::lock;

/// How long a listing tells what is there: the weight files of a model are looked at one after the other.
const FRESH: Duration = Duration::from_secs(5);

/// How long what fails is tried again.
const PATIENCE: Duration = Duration::from_secs(120);

/// Tries of what the client does not ask for again by itself.
const TRIES: usize = 6;

/// How long a machine of a cloud may take to answer that it has credentials of its own.
const METADATA_WAIT: Duration = Duration::from_secs(2);

/// Where AWS instances have their credentials.
const METADATA: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254)), 80);

/// What of a client is set, as texts: a body may take as long as it likes while bytes come.
const CLIENT: [(ClientConfigKey, &str); 4] = [
    (ClientConfigKey::Timeout, "1 day"),
    (ClientConfigKey::ReadTimeout, "30 seconds"),
    (ClientConfigKey::ConnectTimeout, "10 seconds"),
    (ClientConfigKey::UserAgent, concat!("monoquant/", env!("CARGO_PKG_VERSION"))),
];

fn retry() -> RetryConfig {
    let (first, most) = (Duration::from_millis(100), Duration::from_secs(10));
    let backoff = BackoffConfig { init_backoff: first, max_backoff: most, base: 2.0 };
    RetryConfig { backoff, max_retries: 10, retry_timeout: PATIENCE }
}

/// A bucket: objects, and uploads in parts that other processes may end.
pub(crate) trait Bucket: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> Bucket for T {}

/// Asks again as long as the answer may be another one: the client does so for what is not answered, but not for a list that is cut
/// off, or where the same request sent twice could do something else.
///
/// # Errors
/// The last one.
pub(crate) fn patiently<T>(ask: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    let (start, mut tries) = (Instant::now(), 1);
    loop {
        match ask() {
            Err(error)
                if tries < TRIES
                    && start.elapsed() < PATIENCE
                    && trouble(&error).code == code::UNREACHABLE =>
            {
                tries += 1;
            }
            answer => return answer,
        }
    }
}

/// The store of a bucket. Credentials and endpoint come from the environment.
fn store(scheme: &str, bucket: &str) -> Result<Arc<dyn Bucket>, Trouble> {
    let wrong = |error: Error| Trouble {
        code: code::IO,
        what: error.to_string(),
        help: "Check the variables of the environment that name the store and its credentials.".to_owned(),
    };
    // The clients need the provider that the runtime sets.
    runtime().map_err(|error| Trouble::temporary(error.to_string()))?;
    if scheme == "gs" {
        let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry());
        let builder = CLIENT.iter().fold(builder, |builder, (key, value)| {
            builder.with_config(GoogleConfigKey::Client(*key), *value)
        });
        return Ok(Arc::new(builder.build().map_err(wrong)?));
    }
    let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry());
    let builder = CLIENT
        .iter()
        .fold(builder, |builder, (key, value)| builder.with_config(AmazonS3ConfigKey::Client(*key), *value));
    let is_set = |key| builder.get_config_value(&key).is_some();
    let names_credentials = [
        AmazonS3ConfigKey::AccessKeyId,
        AmazonS3ConfigKey::WebIdentityTokenFile,
        AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
        AmazonS3ConfigKey::ContainerCredentialsFullUri,
        AmazonS3ConfigKey::MetadataEndpoint,
    ];
    let is_signed = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature).as_deref() != Some("true");
    if is_signed
        && !names_credentials.into_iter().any(is_set)
        && TcpStream::connect_timeout(&METADATA, METADATA_WAIT).is_err()
    {
        return Err(no_credentials());
    }
    Ok(Arc::new(builder.build().map_err(wrong)?))
}

/// The bucket and the prefix that a word such as `s3://bucket/prefix` stands for. Nothing is asked for yet.
///
/// # Errors
/// If it names no bucket or cannot be a prefix, or the environment does not tell how to reach the bucket.
pub(crate) fn connect(word: &str) -> Result<(Arc<dyn Bucket>, Path), Trouble> {
    let (scheme, rest) = word.split_once("://").unwrap_or_default();
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let wrong = |what: &str| Trouble {
        code: code::NOT_FOUND,
        what: what.to_owned(),
        help: format!("Write `{scheme}://bucket/prefix`, with the prefix that the model's files have."),
    };
    if bucket.is_empty() {
        return Err(wrong("it names no bucket"));
    }
    let prefix = Path::parse(prefix).map_err(|_| wrong("its prefix cannot be one"))?;
    Ok((store(scheme, bucket)?, prefix))
}

/// Opens the source that a word stands for.
pub(in crate::format::source) fn open(word: &str) -> Opened {
    let (store, prefix) = connect(word).map_err(|trouble| failure(vec![trouble.finding(word)]))?;
    Ok(Arc::new(Objects::list(word, store, prefix)?))
}

/// The objects below a prefix.
#[derive(Debug)]
struct Objects {
    word: String,
    at: Arc<At>,
    /// By their paths below the prefix.
    objects: BTreeMap<String, ObjectMeta>,
    single: Option<String>,
}

/// A prefix in a store.
#[derive(Debug)]
struct At {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// What was there when it was looked at last.
    seen: Mutex<Option<(Instant, HashMap<Path, Identity>)>>,
}

impl At {
    /// All objects, or as many as a model may have and one more.
    fn list(&self) -> Result<Vec<ObjectMeta>, Error> {
        patiently(|| self.list_once())
    }

    fn list_once(&self) -> Result<Vec<ObjectMeta>, Error> {
        let (store, prefix) = (Arc::clone(&self.store), self.prefix.clone());
        let listed = wait(async move {
            let mut objects = Vec::new();
            let mut listing = store.list(Some(&prefix).filter(|prefix| !prefix.as_ref().is_empty()));
            while let Some(object) = listing.next().await {
                objects.push(object?);
                if objects.len() > MAX_BLOBS {
                    break;
                }
            }
            Ok(objects)
        });
        listed.map_err(|error| Error::Generic { store: "store", source: error.into() })?
    }

    fn head(&self, path: &Path) -> Result<ObjectMeta, Error> {
        let (store, path) = (Arc::clone(&self.store), path.clone());
        let got = wait(async move { store.head(&path).await });
        got.map_err(|error| Error::Generic { store: "store", source: error.into() })?
    }

    /// The path of an object below the prefix.
    fn below(&self, object: &Path) -> Option<String> {
        let mut parts = object.prefix_match(&self.prefix)?.peekable();
        parts.peek()?;
        let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
        Some(parts.join("/"))
    }
}

/// What tells a version of an object from another: its ETag and length.
fn identity(object: &ObjectMeta) -> Identity {
    let version = object.e_tag.clone().unwrap_or_else(|| object.last_modified.to_rfc3339());
    Identity::of_version(format!("{version} {}", object.size))
}

impl Objects {
    fn list(word: &str, store: Arc<dyn ObjectStore>, prefix: Path) -> Result<Self, Failure> {
        let fail = |error: Error| failure(vec![trouble(&error).finding(word)]);
        let at = Arc::new(At { store, prefix, seen: Mutex::default() });
        let listed = at.list().map_err(fail)?;
        let mut objects: BTreeMap<String, ObjectMeta> =
            listed.into_iter().filter_map(|object| Some((at.below(&object.location)?, object))).collect();
        let word = word.to_owned();
        if !objects.is_empty() {
            return Ok(Self { word, at, objects, single: None });
        }
        // A prefix may be one object.
        let object = match at.prefix.filename() {
            Some(_) => at.head(&at.prefix),
            None => Err(Error::NotFound { path: String::new(), source: "the bucket is empty".into() }),
        };
        let object = object.map_err(|error| match error {
            Error::NotFound { .. } => failure(vec![
                Finding::error(code::NOT_FOUND, format!("there is nothing at `{word}`"))
                    .help("Check the prefix; that of a model is what stands before `/config.json`."),
            ]),
            other => fail(other),
        })?;
        let parts: Vec<_> = at.prefix.parts().collect();
        let name = parts.last().map(|name| name.as_ref().to_owned()).unwrap_or_default();
        let prefix = parts.iter().take(parts.len().saturating_sub(1)).cloned().collect();
        let at = Arc::new(At { store: Arc::clone(&at.store), prefix, seen: Mutex::default() });
        objects.insert(name.clone(), object);
        Ok(Self { word, at, objects, single: Some(name) })
    }

    /// The objects that hold folders together, as tools for buckets make them: empty, and with others below them.
    fn is_folder(&self, path: &str, object: &ObjectMeta) -> bool {
        let below = format!("{path}/");
        let mut next = self.objects.range(below.clone()..);
        object.size == 0 && next.next().is_some_and(|(next, _)| next.starts_with(&below))
    }
}

impl Source for Objects {
    fn name(&self) -> String {
        self.word.clone()
    }

    fn place(&self, path: &str) -> String {
        let word = self.word.trim_end_matches('/');
        let folder = match &self.single {
            Some(single) => word.strip_suffix(single.as_str()).unwrap_or(word).trim_end_matches('/'),
            None => word,
        };
        format!("{folder}/{path}")
    }

    fn list(&self) -> Vec<Entry> {
        let objects = self.objects.iter().filter(|(path, object)| !self.is_folder(path, object));
        entries(objects.map(|(path, object)| (path.as_str(), object.size)))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Blob>> {
        let object = match self.objects.get(path) {
            Some(object) => object.clone(),
            None if self.single.is_some() => {
                let parts = self.at.prefix.parts().map(|part| part.as_ref().to_owned());
                let whole: Vec<String> = parts.chain(path.split('/').map(str::to_owned)).collect();
                let whole = Path::parse(whole.join("/")).map_err(|_| io::ErrorKind::NotFound)?;
                self.at.head(&whole).map_err(|error| match error {
                    Error::NotFound { .. } => io::ErrorKind::NotFound.into(),
                    other => told(&other),
                })?
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let (bytes, identity) = (object.size, identity(&object));
        Ok(Box::new(Remote::new(Arc::new(Object { at: Arc::clone(&self.at), object }), bytes, identity)))
    }

    fn single(&self) -> Option<&str> {
        self.single.as_deref()
    }

    fn is_remote(&self) -> bool {
        true
    }
}

/// One object of one version.
#[derive(Debug)]
struct Object {
    at: Arc<At>,
    object: ObjectMeta,
}

impl Object {
    async fn get(&self, range: Range<u64>) -> Result<Vec<u8>, io::Error> {
        let wanted = &self.object;
        let options = GetOptions {
            if_match: wanted.e_tag.clone(),
            range: Some((range.clone()).into()),
            ..GetOptions::default()
        };
        let got = self.at.store.get_opts(&wanted.location, options).await;
        let got = got.map_err(|error| told(&error))?;
        // Some stores do not look at the condition.
        if identity(&got.meta) != identity(wanted) {
            return Err(Replaced.into());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(range.end - range.start).unwrap_or(0));
        let mut chunks = got.into_stream();
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk.map_err(|error| told(&error))?);
        }
        Ok(bytes)
    }
}

impl Fetch for Object {
    fn fetch(self: Arc<Self>, range: Range<u64>) -> Pending<io::Result<Vec<u8>>> {
        Box::pin(async move {
            if range.is_empty() {
                return Ok(Vec::new());
            }
            self.get(range).await
        })
    }

    fn identity_now(&self) -> io::Result<Identity> {
        let mut seen = lock(&self.at.seen);
        let objects = match &*seen {
            Some((at, objects)) if at.elapsed() < FRESH => objects,
            _ => {
                let now = Instant::now();
                let listed = self.at.list().map_err(|error| told(&error))?;
                let objects = listed.iter().map(|object| (object.location.clone(), identity(object)));
                &seen.insert((now, objects.collect())).1
            }
        };
        objects.get(&self.object.location).cloned().ok_or_else(|| Replaced.into())
    }
}

#[cfg(test)]
mod tests;
