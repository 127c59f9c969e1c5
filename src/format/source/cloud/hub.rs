//! The source that is a model of the Hub, read from there in ranges. Nothing is kept on the disk.
//!
//! The commit is asked for once, so that all reads are of one version. Large files lie on other hosts, at signed addresses
//! that expire: one is kept for each file until it is refused. The token goes to the Hub and to no other host.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, LINK, LOCATION, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::listing::{MAX_BLOBS, entries};
use super::{Fetch, Pending, Remote, runtime, wait};
use crate::finding::Failure;
use crate::format::source::{Blob, Entry, Identity, Opened, Source, Trouble, code, failure};
use crate::fs::handles::Replaced;
use crate::fs::regular::{self, limit};

/// Tries of a request that may succeed later.
const TRIES: u32 = 8;

/// The first wait between two tries; each is twice the one before.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// Redirects within the Hub that are followed.
const HOPS: usize = 5;

/// Bytes of the longest answer that is not a file.
const ANSWER: u64 = 64 << 20;

/// The Hub and its token, by the environment.
#[derive(Debug)]
struct Hub {
    client: Client,
    endpoint: Url,
    token: Option<String>,
}

/// What the Hub says about a revision.
#[derive(Deserialize)]
struct Revision {
    sha: String,
}

/// A line of the list of a revision's files.
#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    size: u64,
    oid: String,
    lfs: Option<Large>,
}

/// A file that is kept outside of the repository.
#[derive(Deserialize)]
struct Large {
    /// Its SHA-256.
    oid: String,
    size: u64,
}

fn temporary(what: impl std::fmt::Display) -> Trouble {
    Trouble::temporary(what.to_string())
}

/// The token of the environment, or the one that `hf auth login` has left.
fn token() -> Option<String> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
    let path = || {
        let home = || variable("HOME").or_else(|| variable("USERPROFILE"));
        variable("HF_TOKEN_PATH")
            .map(PathBuf::from)
            .or_else(|| variable("HF_HOME").map(|folder| PathBuf::from(folder).join("token")))
            .or_else(|| home().map(|home| PathBuf::from(home).join(".cache/huggingface/token")))
    };
    let read = || regular::read_text(&path()?, limit::WORD).ok();
    variable("HF_TOKEN").or_else(read).map(|token| token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// Opens a model of the Hub at a revision. `word` is what the recipe says.
pub(in crate::format::source) fn open(word: &str, repository: &str, revision: &str) -> Opened {
    let fail = |trouble: Trouble| -> Failure { failure(vec![trouble.finding(word)]) };
    let hub = Arc::new(Hub::of_environment().map_err(fail)?);
    let (asking, name, wanted) = (Arc::clone(&hub), repository.to_owned(), revision.to_owned());
    let found = wait(async move { asking.files(&name, &wanted).await });
    let (commit, files) = found.map_err(temporary).and_then(|found| found).map_err(fail)?;
    let (word, repository) = (word.to_owned(), repository.to_owned());
    Ok(Arc::new(Snapshot { word, repository, hub, commit, files }))
}

impl Hub {
    fn of_environment() -> Result<Self, Trouble> {
        // The client needs the provider that the runtime sets.
        runtime().map_err(temporary)?;
        let given = env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        let given = given.unwrap_or_else(|| "https://huggingface.co".to_owned());
        let wrong = |what: String| Trouble {
            code: code::IO,
            what,
            help: "`HF_ENDPOINT` is the address of the Hub, such as `https://huggingface.co`.".to_owned(),
        };
        let endpoint = Url::parse(&format!("{}/", given.trim_end_matches('/')))
            .map_err(|error| wrong(format!("`{given}` is no address: {error}")))?;
        let client = Client::builder()
            .redirect(Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(30))
            .user_agent(concat!("monoquant/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| wrong(format!("there is no client: {error}")))?;
        Ok(Self { client, endpoint, token: token() })
    }

    /// An address below the Hub's own.
    fn address(&self, parts: &[&str]) -> Result<Url, Trouble> {
        let mut url = self.endpoint.clone();
        {
            let mut segments = url.path_segments_mut().map_err(|()| temporary("the endpoint has no path"))?;
            segments.pop_if_empty().extend(parts);
        }
        Ok(url)
    }

    /// One try of a request.
    async fn ask(
        &self,
        method: Method,
        url: &Url,
        range: Option<&Range<u64>>,
    ) -> Result<Response, reqwest::Error> {
        let mut request = self.client.request(method, url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.endpoint.origin()) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        request.send().await
    }

    /// Asks until there is an answer that is no reason to ask again.
    async fn answer(&self, method: Method, url: &Url) -> Result<Response, Trouble> {
        let mut tries = Tries::default();
        loop {
            match self.ask(method.clone(), url, None).await {
                Ok(answer) if !is_busy(answer.status()) => return Ok(answer),
                Ok(answer) => tries.wait(answer.status(), wanted_wait(&answer)).await?,
                Err(error) => tries.wait(whole(error), None).await?,
            }
        }
    }

    /// A JSON answer, and the address of the page that follows.
    async fn json<T: serde::de::DeserializeOwned>(&self, url: &Url) -> Result<(T, Option<Url>), Trouble> {
        let mut tries = Tries::default();
        loop {
            let mut answer = self.answer(Method::GET, url).await?;
            if !answer.status().is_success() {
                return Err(self.refused(&answer));
            }
            let next = next_page(&answer).and_then(|next| url.join(&next).ok());
            let next = next.filter(|next| next.origin() == self.endpoint.origin());
            let mut text = Vec::new();
            let cut = loop {
                match answer.chunk().await {
                    Ok(Some(chunk)) if text.len() as u64 + chunk.len() as u64 <= ANSWER => {
                        text.extend_from_slice(&chunk)
                    }
                    Ok(Some(_)) => return Err(temporary("the answer is too long")),
                    Ok(None) => break None,
                    Err(error) => break Some(whole(error)),
                }
            };
            match cut {
                Some(why) => tries.wait(why, None).await?,
                None => {
                    let read = serde_json::from_slice(&text);
                    return read.map(|read| (read, next)).map_err(|error| Trouble {
                        code: code::IO,
                        what: format!("the answer of {} is not what the Hub says: {error}", self.endpoint),
                        help: "Check `HF_ENDPOINT`.".to_owned(),
                    });
                }
            }
        }
    }

    /// The commit of a revision, and its files.
    async fn files(
        &self,
        repository: &str,
        revision: &str,
    ) -> Result<(String, BTreeMap<String, File>), Trouble> {
        let names: Vec<&str> = repository.split('/').collect();
        let api = |rest: &[&str]| {
            let parts: Vec<&str> = ["api", "models"].iter().chain(&names).chain(rest).copied().collect();
            self.address(&parts)
        };
        let (Revision { sha }, _) = self.json(&api(&["revision", revision])?).await?;
        let mut url = api(&["tree", &sha])?;
        url.set_query(Some("recursive=true"));
        let mut files = BTreeMap::new();
        loop {
            let (page, next): (Vec<Listed>, _) = self.json(&url).await?;
            for listed in page.into_iter().filter(|listed| listed.kind == "file") {
                let (bytes, hash) = match listed.lfs {
                    Some(large) => (large.size, large.oid),
                    None => (listed.size, listed.oid),
                };
                files.insert(listed.path, File { bytes, hash });
            }
            match next {
                Some(next) if files.len() <= MAX_BLOBS => url = next,
                _ => return Ok((sha, files)),
            }
        }
    }

    /// Why the Hub does not give what it was asked for.
    fn refused(&self, answer: &Response) -> Trouble {
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let (said, status) = (header("x-error-code").unwrap_or_default(), answer.status().as_u16());
        let of = |code, what: &str, help: String| Trouble { code, what: what.to_owned(), help };
        let has_token = self.token.is_some();
        match (said, status) {
            ("GatedRepo", _) if has_token => of(
                code::DENIED,
                "the repository is gated, and the token does not open it",
                format!("Ask for access on its page at {}, with the account of the token.", self.endpoint),
            ),
            ("GatedRepo", _) => of(
                code::DENIED,
                "the repository is gated",
                format!(
                    "Ask for access on its page at {}, and set `HF_TOKEN` to a token of that account.",
                    self.endpoint
                ),
            ),
            ("RevisionNotFound", _) => {
                of(code::NOT_FOUND, "it has no such revision", "Name a branch, a tag or a commit.".to_owned())
            }
            (_, 401 | 403) if has_token => of(
                code::DENIED,
                "there is no such model, or the token does not open it",
                "Check the name, and whether `HF_TOKEN` is valid and may read it.".to_owned(),
            ),
            ("RepoNotFound", _) | (_, 401 | 403 | 404) => of(
                code::NOT_FOUND,
                "there is no such model on the Hub, or it is private",
                "Check the name; for a private model set `HF_TOKEN`.".to_owned(),
            ),
            (_, status) => of(
                code::IO,
                &format!("the Hub answered with status {status}"),
                "Check `HF_ENDPOINT`.".to_owned(),
            ),
        }
    }
}

/// Whether a status says that the same request may be answered later.
fn is_busy(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

/// How long a server wants to be left alone.
fn wanted_wait(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The address of the next page of a list.
fn next_page(answer: &Response) -> Option<String> {
    let link = answer.headers().get(LINK)?.to_str().ok()?;
    let next = link.split(',').find(|link| link.contains("rel=\"next\""))?;
    let (_, address) = next.split_once('<')?;
    address.split_once('>').map(|(address, _)| address.to_owned())
}

/// An error and its causes, without the address: it may be signed.
fn whole(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The tries of one request.
#[derive(Default)]
struct Tries(u32);

impl Tries {
    /// Waits before the next one.
    ///
    /// # Errors
    /// If there were enough of them.
    async fn wait(&mut self, why: impl std::fmt::Display, wanted: Option<Duration>) -> Result<(), Trouble> {
        self.0 += 1;
        if self.0 >= TRIES {
            return Err(temporary(format!("no answer after {TRIES} tries: {why}")));
        }
        let own = FIRST_WAIT * 2_u32.pow(self.0 - 1);
        tokio::time::sleep(wanted.map_or(own, |wanted| wanted.max(own)).min(LONGEST_WAIT)).await;
        Ok(())
    }
}

/// A file of a revision.
#[derive(Debug, Clone)]
struct File {
    bytes: u64,
    /// The SHA-256 of a large file; of a small one the number that git gives its contents.
    hash: String,
}

/// A model at a commit.
#[derive(Debug)]
struct Snapshot {
    word: String,
    repository: String,
    hub: Arc<Hub>,
    commit: String,
    files: BTreeMap<String, File>,
}

impl Source for Snapshot {
    fn name(&self) -> String {
        self.word.clone()
    }

    fn place(&self, path: &str) -> String {
        format!("{}/{path}", self.word)
    }

    fn list(&self) -> Vec<Entry> {
        entries(self.files.iter().map(|(path, file)| (path.as_str(), file.bytes)))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Blob>> {
        let file = self.files.get(path).ok_or(io::ErrorKind::NotFound)?.clone();
        let names = self.repository.split('/').chain(["resolve", &self.commit]).chain(path.split('/'));
        let page = self.hub.address(&names.collect::<Vec<_>>())?;
        let (bytes, identity) = (file.bytes, Identity::of_version(file.hash.clone()));
        let object = Object { hub: Arc::clone(&self.hub), page, file, address: Mutex::default() };
        Ok(Box::new(Remote::new(Arc::new(object), bytes, identity)))
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn revision(&self) -> Option<&str> {
        Some(&self.commit)
    }
}

/// A file of the Hub, and where its bytes are at present.
#[derive(Debug)]
struct Object {
    hub: Arc<Hub>,
    page: Url,
    file: File,
    address: Mutex<Option<Url>>,
}

impl Object {
    /// Where the bytes are. Many may want to know, and one asks.
    async fn address(&self, refused: Option<&Url>) -> Result<Url, io::Error> {
        let mut address = self.address.lock().await;
        if let Some(known) = address.as_ref().filter(|known| refused != Some(*known)) {
            return Ok(known.clone());
        }
        let mut url = self.page.clone();
        for _ in 0..HOPS {
            let answer = self.hub.answer(Method::HEAD, &url).await?;
            let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
            if let Some(tag) = header("x-linked-etag")
                && tag.trim_start_matches("W/").trim_matches('"') != self.file.hash
            {
                return Err(Replaced.into());
            }
            if answer.status().is_redirection() {
                let to = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let to = to.and_then(|to| url.join(to).ok());
                url = to.ok_or_else(|| temporary("the Hub sends on to nowhere"))?;
                if url.origin() == self.hub.endpoint.origin() {
                    continue;
                }
            } else if !answer.status().is_success() {
                return Err(self.hub.refused(&answer).into());
            }
            *address = Some(url.clone());
            return Ok(url);
        }
        Err(temporary("the Hub sends on too often").into())
    }

    async fn get(&self, range: Range<u64>) -> Result<Vec<u8>, io::Error> {
        let mut bytes = Vec::with_capacity(usize::try_from(range.end - range.start).unwrap_or(0));
        let mut tries = Tries::default();
        let mut address = self.address(None).await?;
        let mut renewed = 0;
        loop {
            // A body that was cut off goes on where it ended.
            let left = range.start + bytes.len() as u64..range.end;
            if left.is_empty() {
                return Ok(bytes);
            }
            let answer = match self.hub.ask(Method::GET, &address, Some(&left)).await {
                Ok(answer) if is_busy(answer.status()) => {
                    tries.wait(answer.status(), wanted_wait(&answer)).await?;
                    continue;
                }
                Ok(answer) => answer,
                Err(error) => {
                    tries.wait(whole(error), None).await?;
                    continue;
                }
            };
            let status = answer.status();
            let is_signed = address.origin() != self.hub.endpoint.origin();
            if is_signed && matches!(status.as_u16(), 401 | 403 | 410) && renewed < TRIES {
                renewed += 1;
                address = self.address(Some(&address)).await?;
                continue;
            }
            // A small file may come as a whole.
            let mut skip = match status {
                StatusCode::PARTIAL_CONTENT => 0,
                StatusCode::OK if self.file.bytes <= ANSWER => left.start,
                _ if is_signed => {
                    Err(temporary(format!("the store of the Hub answered with status {status}")))?
                }
                _ => return Err(self.hub.refused(&answer).into()),
            };
            let had = bytes.len();
            if let Err(why) = take(answer, &mut skip, (left.end - left.start) as usize, &mut bytes).await {
                // What brought something was no failure.
                tries = if bytes.len() > had { Tries::default() } else { tries };
                tries.wait(why, None).await?;
            }
        }
    }
}

/// Takes so many bytes of a body, after some that are left out.
async fn take(
    mut answer: Response,
    skip: &mut u64,
    mut wanted: usize,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    while wanted > 0 {
        let Some(chunk) = answer.chunk().await.map_err(whole)? else {
            return Err("it ended early".to_owned());
        };
        let left_out = usize::try_from(*skip).unwrap_or(usize::MAX).min(chunk.len());
        *skip -= left_out as u64;
        let chunk = &chunk[left_out..];
        let count = chunk.len().min(wanted);
        out.extend_from_slice(&chunk[..count]);
        wanted -= count;
    }
    Ok(())
}

impl Fetch for Object {
    fn fetch(self: Arc<Self>, range: Range<u64>) -> Pending<io::Result<Vec<u8>>> {
        Box::pin(async move { self.get(range).await })
    }

    /// A commit never changes.
    fn identity_now(&self) -> io::Result<Identity> {
        Ok(Identity::of_version(self.file.hash.clone()))
    }
}
