//! The cookie of a socket: what whoever asks over it shows, to say that they can read a file of this shim's own folder.
//!
//! What must hold: nobody is answered who does not show it; it is a file of mode 0600 in a folder of this shim alone, and is
//! compared in constant time. The mode of a socket says which *account* may open it, and servers that are programs run under the
//! shim's: the kernel's sandbox (Landlock) keeps files from them, and not the sockets that are files.

use std::{io, path::Path};

use custody::id::{hex, unhex};
use subtle::ConstantTimeEq as _;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

use crate::{
    durable,
    key::{self, KeyError},
    random,
};

/// Where it travels, as `Bearer HEX`: every library of gRPC can send that.
const HEADER: &str = "authorization";
const PREFIX: &str = "Bearer ";

/// What is asked for before anything is answered.
#[derive(Clone)]
pub struct Cookie {
    bytes: [u8; 32],
    /// Name of the file that it stands in, for whoever does not show it. Not its path: anybody may ask.
    name: String,
}

impl Cookie {
    /// Another one, in place of what stands there: for a socket whose callers read the file each time.
    ///
    /// # Errors
    /// As the file system says.
    pub fn fresh(path: &Path) -> io::Result<Self> {
        // Not replaced: a file keeps its mode then, whatever it is.
        match durable::remove(path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
            _ => Self::made(path),
        }
    }

    /// The one that stands there, or a new one: for a socket whose callers stay.
    ///
    /// # Errors
    /// In words, with the next move.
    pub fn kept(path: &Path) -> Result<Self, String> {
        match Self::made(path) {
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {
                Ok(Self { bytes: read(path)?, name: name_of(path) })
            }
            made => made.map_err(|why| format!("make {}: {why}; hint: may this account write there?", path.display())),
        }
    }

    fn made(path: &Path) -> io::Result<Self> {
        let bytes = random::bytes();
        durable::create_new(path, format!("{}\n", hex(&bytes)).as_bytes(), true)?;
        Ok(Self { bytes, name: name_of(path) })
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<[u8; 32], String> {
    let text = key::read_secret(path).map_err(|why| match why {
        KeyError::File(_, why) => {
            format!("read {}: {why}; hint: it is written by a shim that runs, for its own account", path.display())
        }
        why => why.to_string(),
    })?;
    let bytes = unhex(text.trim()).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| {
        format!("use {}: it is not 64 hex digits; hint: remove it, and start the shim again", path.display())
    })
}

impl Interceptor for Cookie {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let shown =
            request.metadata().get(HEADER).and_then(|shown| shown.to_str().ok()?.strip_prefix(PREFIX).and_then(unhex));
        match shown.is_some_and(|shown| bool::from(shown.ct_eq(&self.bytes))) {
            true => Ok(request),
            false => Err(Status::unauthenticated(format!(
                "know who asks: the request does not show the secret of this socket; hint: the header `{HEADER}: {PREFIX}...` \
                 with what stands in {}, in the folder of the shim",
                self.name
            ))),
        }
    }
}

/// Shows a cookie with each request.
#[derive(Clone)]
pub struct Shown(MetadataValue<Ascii>);

impl Shown {
    /// What stands in this file.
    ///
    /// # Errors
    /// In words, with the next move.
    pub fn read(path: &Path) -> Result<Self, String> {
        let value = format!("{PREFIX}{}", hex(&read(path)?)).parse();
        value.map(Self).map_err(|_| format!("use {}", path.display()))
    }
}

impl Interceptor for Shown {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(HEADER, self.0.clone());
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_cookie_is_its_owners_alone_and_only_the_whole_of_it_is_good() {
        let dir = TempDir::new();
        let path = dir.path().join("cookie");
        // As somebody may have left it: nobody else reads what comes.
        std::fs::File::create(&path).unwrap().set_permissions(PermissionsExt::from_mode(0o644)).unwrap();
        let mut cookie = Cookie::fresh(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap().trim().to_owned();
        let mut asked = |value: Option<&str>| {
            let mut request = Request::new(());
            if let Some(value) = value {
                request.metadata_mut().insert(HEADER, value.parse().unwrap());
            }
            cookie.call(request).map(drop).map_err(|status| status.code())
        };
        assert_eq!(asked(Some(&format!("Bearer {text}"))), Ok(()));
        let shorter = format!("Bearer {}", &text[2..]);
        let other = format!("Bearer {}", "0".repeat(64));
        for wrong in [None, Some(""), Some("Bearer "), Some(text.as_str()), Some(&shorter), Some(&other)] {
            assert_eq!(asked(wrong), Err(tonic::Code::Unauthenticated), "{wrong:?}");
        }
        let shown = Shown::read(&path).unwrap().call(Request::new(())).unwrap();
        assert!(cookie.call(shown).is_ok());
        // Another start has another one, and a kept one stays.
        assert_ne!(Cookie::fresh(&path).unwrap().bytes, cookie.bytes);
        let kept = dir.path().join("kept");
        assert_eq!(Cookie::kept(&kept).unwrap().bytes, Cookie::kept(&kept).unwrap().bytes);
        std::fs::set_permissions(&kept, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(Cookie::kept(&kept).map(drop).unwrap_err().contains("hint: "), "others may have read it");
    }
}
