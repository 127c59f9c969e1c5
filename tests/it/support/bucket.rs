//! A bucket of an object store, for tests: it speaks as much of S3 as they take.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::http::{Answer, Request, serve};
use super::{Workspace, files};

/// An object: its bytes, and the checksum in its metadata.
#[derive(Clone, Default)]
pub struct Object {
    pub bytes: Vec<u8>,
    pub sum: Option<String>,
}

/// An upload: its object, and its parts.
pub struct Upload {
    key: String,
    object: Object,
    parts: BTreeMap<usize, Vec<u8>>,
}

/// A bucket called `lab`. A fault every so many requests: too busy, a body that is cut off, or an answer that is lost.
#[derive(Default)]
pub struct Bucket {
    pub objects: Mutex<BTreeMap<String, Object>>,
    /// Uploads that are not ended, by their numbers.
    pub uploads: Mutex<BTreeMap<usize, Upload>>,
    pub faults: Option<usize>,
    /// The code of an error that answers every request.
    pub refuses: Option<(u16, &'static str)>,
    /// The same for requests that write.
    pub is_read_only: bool,
    /// After so many ranges of weights all objects are exchanged.
    pub exchanged: Option<usize>,
    pub requests: AtomicUsize,
    pub ranges: AtomicUsize,
    pub begun: AtomicUsize,
}

/// The header of a checksum in the metadata of an object.
const SUM: &str = "x-amz-meta-monoquant-crc64nvme";

/// A parameter of a query.
fn parameter<'q>(query: &'q str, name: &str) -> &'q str {
    let mut found = query.split('&').filter_map(|one| one.split_once('='));
    found.find(|(key, _)| *key == name).map_or("", |(_, value)| value)
}

fn tag(bytes: &[u8]) -> String {
    format!("\"{}\"", &blake3::hash(bytes).to_hex()[..32])
}

fn error(status: u16, code: &str) -> Answer {
    Answer::new(
        status,
        format!("<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"),
    )
}

impl Bucket {
    pub fn of(workspace: &Workspace) -> Self {
        let objects = files(&workspace.path("model")).into_iter();
        let objects =
            objects.map(|(name, bytes)| (format!("m/{name}"), Object { bytes, sum: None })).collect();
        Self { objects: Mutex::new(objects), ..Self::default() }
    }

    pub fn start(self) -> (Arc<Self>, String) {
        let bucket = Arc::new(self);
        let serving = Arc::clone(&bucket);
        (bucket, serve(move |request| serving.answer(request)))
    }

    fn answer(&self, request: &Request) -> Answer {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let kind =
            self.faults.map_or(3, |every| if number % every == every - 1 { number / every % 3 } else { 3 });
        if kind == 0 {
            return error(503, "SlowDown");
        }
        if let Some((status, code)) = self.refuses {
            return error(status, code);
        }
        let is_read = matches!(request.method.as_str(), "GET" | "HEAD");
        if self.is_read_only && !is_read {
            return error(403, "AccessDenied");
        }
        let answer = if is_read { self.found(request) } else { self.changed(request) };
        Answer { is_cut: kind == 1 && request.method == "GET", is_lost: kind == 2 && !is_read, ..answer }
    }

    fn found(&self, request: &Request) -> Answer {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let Some(key) = path.strip_prefix("/lab") else { return error(404, "NoSuchBucket") };
        let mut objects = self.objects.lock().expect("a lock");
        if query.contains("list-type=2") {
            let prefix = parameter(query, "prefix").replace("%2F", "/");
            let listed = objects.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(key, Object { bytes, .. })| {
                format!(
                    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{}</ETag>\
                     <Size>{}</Size></Contents>",
                    tag(bytes).replace('"', "&quot;"),
                    bytes.len()
                )
            });
            let listed: String = listed.collect();
            return Answer::new(
                200,
                format!(
                    "<ListBucketResult><Name>lab</Name><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>"
                ),
            );
        }
        let key = key.trim_start_matches('/');
        let is_inside = request.header("range").is_some_and(|range| !range.starts_with("bytes=0-"));
        if key.ends_with(".safetensors")
            && is_inside
            && self.exchanged == Some(self.ranges.fetch_add(1, Ordering::SeqCst))
        {
            for object in objects.values_mut() {
                object.bytes.reverse();
            }
        }
        let Some(Object { bytes, sum }) = objects.get(key) else { return error(404, "NoSuchKey") };
        if request.header("if-match").is_some_and(|wanted| wanted != tag(bytes)) {
            return error(412, "PreconditionFailed");
        }
        let answer = Answer::of(bytes, request)
            .with("ETag", tag(bytes))
            .with("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT");
        sum.iter().fold(answer, |answer, sum| answer.with(SUM, sum))
    }

    /// The answer to a request that writes.
    fn changed(&self, request: &Request) -> Answer {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        if request.method == "POST" && query == "delete" {
            let text = String::from_utf8_lossy(&request.body).into_owned();
            let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
            let mut objects = self.objects.lock().expect("a lock");
            let gone = keys.map(|(key, _)| {
                objects.remove(key);
                format!("<Deleted><Key>{key}</Key></Deleted>")
            });
            return Answer::new(200, format!("<DeleteResult>{}</DeleteResult>", gone.collect::<String>()));
        }
        let Some(key) = path.strip_prefix("/lab/").map(str::to_owned) else {
            return error(404, "NoSuchBucket");
        };
        let mut objects = self.objects.lock().expect("a lock");
        let mut uploads = self.uploads.lock().expect("a lock");
        let object = Object { bytes: request.body.clone(), sum: request.header(SUM).map(str::to_owned) };
        let number = parameter(query, "uploadId").parse::<usize>();
        match (request.method.as_str(), number) {
            ("POST", Err(_)) => {
                let number = self.begun.fetch_add(1, Ordering::SeqCst);
                let answer = format!(
                    "<InitiateMultipartUploadResult><Bucket>lab</Bucket><Key>{key}</Key><UploadId>{number}</UploadId>\
                     </InitiateMultipartUploadResult>"
                );
                uploads.insert(number, Upload { key, object, parts: BTreeMap::new() });
                Answer::new(200, answer)
            }
            ("PUT", Err(_)) if request.header("if-none-match") == Some("*") && objects.contains_key(&key) => {
                error(412, "PreconditionFailed")
            }
            ("PUT", Err(_)) => {
                let tag = tag(&object.bytes);
                objects.insert(key, object);
                Answer::new(200, "").with("ETag", tag)
            }
            ("DELETE", Err(_)) => {
                objects.remove(&key);
                Answer::new(204, "")
            }
            ("PUT", Ok(number)) => {
                let Some(upload) = uploads.get_mut(&number) else { return error(404, "NoSuchUpload") };
                let part = parameter(query, "partNumber").parse().expect("a number");
                let tag = tag(&object.bytes);
                upload.parts.insert(part, object.bytes);
                Answer::new(200, "").with("ETag", tag)
            }
            ("DELETE", Ok(number)) => {
                uploads.remove(&number).map_or_else(|| error(404, "NoSuchUpload"), |_| Answer::new(204, ""))
            }
            (_, Ok(number)) => {
                let Some(upload) = uploads.remove(&number) else { return error(404, "NoSuchUpload") };
                let bytes = upload.parts.into_values().flatten().collect();
                objects.insert(upload.key, Object { bytes, ..upload.object });
                Answer::new(
                    200,
                    "<CompleteMultipartUploadResult><Bucket>lab</Bucket><Key>key</Key><ETag>&quot;tag&quot;</ETag>\
                     </CompleteMultipartUploadResult>",
                )
            }
            _ => error(501, "NotImplemented"),
        }
    }

    /// The files below a prefix, without those that are not for readers.
    pub fn files(&self, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        let objects = self.objects.lock().expect("a lock");
        let below = objects.iter().filter_map(|(key, object)| {
            let name = key.strip_prefix(prefix)?.strip_prefix('/')?;
            (!name.starts_with(".monoquant/")).then(|| (name.to_owned(), object.bytes.clone()))
        });
        below.collect()
    }
}
