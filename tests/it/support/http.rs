//! A server for tests: HTTP/1.1 on this machine, answers by a closure.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;

/// A request.
pub struct Request {
    pub method: String,
    /// Path and query, as they were sent.
    pub target: String,
    /// By lower-case names.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The range of a body of so many bytes that is asked for.
    fn range(&self, len: usize) -> Option<Range<usize>> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let (first, last) = (first.parse().ok()?, last.parse::<usize>().map_or(len, |last| last + 1));
        (first < len).then(|| first..last.min(len))
    }
}

/// What a program said that talked to a server.
pub struct Run {
    pub status: i32,
    /// Everything, on one line.
    pub said: String,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Whether the body ends half way.
    pub is_cut: bool,
    /// Whether the connection ends before the answer.
    pub is_lost: bool,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), is_cut: false, is_lost: false }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The bytes of a file, or the range of them that is asked for.
    pub fn of(bytes: &[u8], request: &Request) -> Self {
        match request.range(bytes.len()) {
            Some(range) => {
                let of = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
                Self::new(206, &bytes[range]).with("Content-Range", of)
            }
            None => Self::new(200, bytes),
        }
    }
}

/// Starts a server that lasts as long as the tests, and says where it is.
pub fn serve(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            // A client that goes away in the middle is none of the test's business.
            std::thread::spawn(move || talk(stream, &*answer));
        }
    });
    format!("http://{address}")
}

fn talk(stream: TcpStream, answer: &dyn Fn(&Request) -> Answer) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = Vec::new();
        (&mut reader).take(length).read_to_end(&mut body)?;
        let request = Request { method, target, headers, body };
        let answer = answer(&request);
        if answer.is_lost {
            return Ok(());
        }
        write!(writer, "HTTP/1.1 {} status\r\nContent-Length: {}\r\n", answer.status, answer.body.len())?;
        for (name, value) in &answer.headers {
            write!(writer, "{name}: {value}\r\n")?;
        }
        write!(writer, "\r\n")?;
        if request.method == "HEAD" {
            continue;
        }
        if answer.is_cut {
            return writer.write_all(&answer.body[..answer.body.len() / 2]);
        }
        writer.write_all(&answer.body)?;
    }
}
