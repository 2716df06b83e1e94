//! Faults between the ledger and what it writes to: archive, fence and database, each write by its name.
//!
//! A write is named by one line: `archive:put:NAME`, `fence:get:NAME`, `store:commit: FAMILY/KEY FAMILY/KEY`. A fault strikes
//! the next so many lines that hold all of its words.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use tokio::sync::watch;

/// How a write goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It fails, and nothing is stored.
    Refuse,
    /// It is stored, and fails all the same.
    DoThenErr,
    /// No answer until [`Faults::clear`]; then it is done, however late.
    Hang,
    /// Nothing of that name is seen.
    Missing,
    /// It goes well: what strikes comes after.
    Pass,
}

#[derive(Debug)]
struct Fault {
    words: &'static [&'static str],
    mode: Mode,
    left: u64,
}

/// What goes wrong. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    planned: Arc<Mutex<Vec<Fault>>>,
    /// How many struck.
    struck: Arc<watch::Sender<u64>>,
    /// Hanging requests, and a change of it lets them go.
    hanging: Arc<watch::Sender<u64>>,
    released: Arc<watch::Sender<u64>>,
}

impl Default for Faults {
    fn default() -> Self {
        let count = || Arc::new(watch::Sender::new(0));
        Self { planned: Arc::default(), struck: count(), hanging: count(), released: count() }
    }
}

impl Faults {
    /// The next `times` writes whose line holds all `words` go wrong.
    pub(crate) fn arm(&self, words: &'static [&'static str], mode: Mode, times: u64) {
        self.planned.lock().unwrap().push(Fault { words, mode, left: times });
    }

    /// From now on nothing goes wrong, and what hangs goes on.
    pub(crate) fn clear(&self) {
        self.planned.lock().unwrap().clear();
        self.released.send_modify(|count| *count += 1);
    }

    /// How many writes went wrong.
    pub(crate) fn struck(&self) -> u64 {
        *self.struck.borrow()
    }

    /// Waits until so many went wrong.
    pub(crate) async fn wait_struck(&self, count: u64) {
        self.struck.subscribe().wait_for(|struck| *struck >= count).await.unwrap();
    }

    /// How many requests hang now.
    pub(crate) fn hanging(&self) -> u64 {
        *self.hanging.borrow()
    }

    /// What becomes of this write.
    pub(crate) fn strike(&self, line: &str) -> Option<Mode> {
        let mut planned = self.planned.lock().unwrap();
        let fits = |fault: &&mut Fault| fault.left > 0 && fault.words.iter().all(|word| line.contains(word));
        let fault = planned.iter_mut().find(fits)?;
        fault.left -= 1;
        if fault.mode == Mode::Pass {
            return None;
        }
        self.struck.send_modify(|count| *count += 1);
        Some(fault.mode)
    }

    async fn hang(&self) {
        let mut released = self.released.subscribe();
        released.borrow_and_update();
        self.hanging.send_modify(|count| *count += 1);
        released.changed().await.ok();
        self.hanging.send_modify(|count| *count -= 1);
    }
}

/// A store with faults.
#[derive(Debug)]
pub(crate) struct Faulty {
    pub(crate) inner: Arc<dyn ObjectStore>,
    pub(crate) faults: Faults,
    pub(crate) place: &'static str,
}

impl Faulty {
    async fn around<T>(&self, call: &str, name: &Path, done: impl Future<Output = Result<T>>) -> Result<T> {
        let broken = || Error::Generic { store: "faulty", source: "an injected fault".into() };
        match self.faults.strike(&format!("{}:{call}:{name}", self.place)) {
            None | Some(Mode::Pass) => done.await,
            Some(Mode::Refuse) => Err(broken()),
            Some(Mode::DoThenErr) => {
                done.await?;
                Err(broken())
            }
            Some(Mode::Hang) => {
                self.faults.hang().await;
                done.await
            }
            Some(Mode::Missing) => Err(Error::NotFound { path: name.to_string(), source: "an injected fault".into() }),
        }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.place)
    }
}

type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl ObjectStore for Faulty {
    fn put_opts<'a, 'b, 'c>(&'a self, name: &'b Path, bytes: PutPayload, options: PutOptions) -> Later<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move { self.around("put", name, self.inner.put_opts(name, bytes, options)).await })
    }

    fn get_opts<'a, 'b, 'c>(&'a self, name: &'b Path, options: GetOptions) -> Later<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move { self.around("get", name, self.inner.get_opts(name, options)).await })
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        name: &'b Path,
        options: PutMultipartOptions,
    ) -> Later<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.inner.put_multipart_opts(name, options)
    }

    fn delete_stream(&self, names: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(names)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b Path>) -> Later<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(&'a self, from: &'b Path, to: &'d Path, options: CopyOptions) -> Later<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        self.inner.copy_opts(from, to, options)
    }
}
