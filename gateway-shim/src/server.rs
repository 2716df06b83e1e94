//! Servers that are programs of this machine: the life of their processes.
//!
//! What must hold: no process runs that is not counted, on record and known to the guard; what the configuration asks of
//! limits and sandbox holds before a server's first instruction, or it does not run; what ends, ends with its whole group.
//!
//! A process begins as the shim run again ([`stage`]), restricts itself as [`sandbox`] decides and becomes the server.
//! [`launch`] starts and ends one; [`guard`] ends what a killed shim leaves; [`pool`] holds those of one server, and
//! [`Servers`] all of them. What goes through their pipes is the business of `serve/stdio.rs`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{config::ProcessConfig, gateway::Gateway};

pub mod backoff;
pub mod guard;
pub mod launch;
pub mod pool;
pub mod probe;
pub mod sandbox;
pub mod stage;

pub use launch::Launcher;
pub use pool::{Pool, Status};

/// No server that is a program has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown(pub String);

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no server {} is a program; hint: gateway-shim server list names those that are", self.0)
    }
}

impl std::error::Error for Unknown {}

/// All servers that are programs, for `gateway-shim server list|start|stop|restart`. Cheap to clone.
#[derive(Clone)]
pub struct Servers {
    guard: guard::Guard,
    launcher: Launcher,
    pools: Arc<Mutex<BTreeMap<String, Arc<Pool>>>>,
}

impl Default for Servers {
    fn default() -> Self {
        Self::new(Launcher::default())
    }
}

impl Servers {
    /// None yet.
    pub fn new(launcher: Launcher) -> Self {
        Self { guard: guard::Guard::new(launcher.clone()), launcher, pools: Arc::default() }
    }

    /// Adds a server.
    pub fn add(&self, name: &str, config: ProcessConfig, gateway: Gateway) -> Arc<Pool> {
        let pool = Pool::open(name, config, self.launcher.clone(), self.guard.clone(), gateway);
        self.lock().insert(name.to_owned(), Arc::clone(&pool));
        pool
    }

    /// What each is doing, by name.
    pub fn list(&self) -> Vec<Status> {
        self.lock().values().map(|pool| pool.status()).collect()
    }

    /// Lets a server's processes be started again, after a stop or after too many failures.
    ///
    /// # Errors
    /// [`Unknown`].
    pub fn start(&self, name: &str) -> Result<Status, Unknown> {
        let pool = self.pool(name)?;
        pool.allow();
        Ok(pool.status())
    }

    /// Ends a server's processes, and starts none until it is started. Returns when they have ended.
    ///
    /// # Errors
    /// [`Unknown`].
    pub async fn stop(&self, name: &str) -> Result<Status, Unknown> {
        let pool = self.pool(name)?;
        pool.stop().await;
        Ok(pool.status())
    }

    /// Ends a server's processes; those that are asked for from now on are new.
    ///
    /// # Errors
    /// [`Unknown`].
    pub async fn restart(&self, name: &str) -> Result<Status, Unknown> {
        let pool = self.pool(name)?;
        pool.stop().await;
        pool.allow();
        Ok(pool.status())
    }

    /// Ends all processes of all servers, at the end of the shim.
    pub async fn stop_all(&self) {
        let pools: Vec<_> = self.lock().values().map(Arc::clone).collect();
        futures::future::join_all(pools.iter().map(|pool| pool.stop())).await;
    }

    fn pool(&self, name: &str) -> Result<Arc<Pool>, Unknown> {
        self.lock().get(name).map(Arc::clone).ok_or_else(|| Unknown(name.to_owned()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Pool>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
