//! The one end-to-end test binary. `accepted`: a tool that changed, until somebody accepts it. `access`: who could call what, out
//! of an archive. `answers`: over HTTP, as evidence, as a tree. `administration`: certificates, HTTP, keys, people. `canary`: what stands in no file. `crash`: the ledger killed
//! under load. `directory`: people, their one id, and who may know more. `door`: the port before anything of a request is read.
//! `failing`: what fails around the ledger. `hostile`: bad input, each with its answer. `index`: days that end
//! and go, kills between, a full disk, reindexing. `life`: processes of servers. `limits`:
//! every limit of intake, and who goes on. `mutated`: the golden archive, changed at random. `official`: official clients and
//! servers, and the conformance suite. `own_keys`: the ledger's three keys. `receipts`: what tool runtimes sign, from a server's
//! answer to the archive. `relay`, `relay_disk`, `relay_key`, `relay_serve` and `relay_sync`: the relay with the published
//! examples, killed under load, on a full disk, under another key, and traced; the proxy killed under load. `search`: questions, and who may ask them. `sync`: the sync
//! before the answer. `tamper`: the golden archive and every lie about it. `weak_spots`: what records of calls are known to get
//! wrong. `words`: what people read. `workspaces`: two shims of two workspaces.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod accepted;
mod access;
mod administration;
mod answers;
mod canary;
mod crash;
mod directory;
mod door;
mod failing;
mod hostile;
mod index;
mod life;
mod limits;
mod mutated;
mod official;
mod own_keys;
mod receipts;
mod relay;
mod relay_disk;
mod relay_key;
mod relay_serve;
mod relay_sync;
mod search;
mod sync;
mod tamper;
mod watch;
mod weak_spots;
mod words;
mod workspaces;
