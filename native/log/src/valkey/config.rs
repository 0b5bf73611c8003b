//! Which server, or cluster, has a log, and how to log in.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::{Host, Url};
use zeroize::{Zeroize, Zeroizing};

const MAX_PARTITIONS: u16 = 64;
const DEFAULT_PORT: u16 = 6379;
const PLAIN: [&str; 2] = ["valkey", "redis"];
const TLS: [&str; 2] = ["valkeys", "rediss"];

/// Which server, or cluster, has the log.
#[derive(Clone)]
pub struct ValkeyConfig {
    /// `valkey://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`, or `valkeys` for TLS. The schemes `redis` and `rediss` mean
    /// the same. The defaults are port 6379 and database 0. For a cluster, the URL of any of its servers.
    pub url: Zeroizing<String>,
    /// The user, if it is not in the URL.
    pub user: Option<String>,
    /// Where the password is.
    pub password: Password,
    /// A PEM file with CA certificates for the server's certificate. Without it, the system's CA certificates count.
    pub ca_file: Option<PathBuf>,
    /// A PEM file with the certificate that this client shows to the server, and its chain.
    pub tls_cert_file: Option<PathBuf>,
    /// A PEM file with the private key of that certificate.
    pub tls_key_file: Option<PathBuf>,
    /// Whether the server is one of a cluster.
    pub cluster: bool,
    /// Number of streams over which the sessions of a scope are spread, at most 64. All nodes that share the log need
    /// the same number. More than 1 is useful only if several servers of a cluster share the load.
    pub partitions: u16,
}

/// Where a password is. It is read again for each connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Password {
    /// In the URL, if there is one.
    #[default]
    Url,
    /// The content of a file, without line ends at its end.
    File(PathBuf),
    /// The value of an environment variable.
    Env(String),
}

/// What a URL and the other settings say about the server.
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    pub(super) database: u32,
    pub(super) user: Option<String>,
    /// The password if it is in the URL.
    pub(super) password: Option<Zeroizing<String>>,
}

impl ValkeyConfig {
    /// One server, with only the settings in the URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: Zeroizing::new(url.into()),
            user: None,
            password: Password::Url,
            ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            cluster: false,
            partitions: 1,
        }
    }

    /// Fails if the settings are wrong, as far as that can be seen without a file or a server.
    pub fn check(&self) -> Result<(), String> {
        self.target().map(|_| ())
    }

    /// The URL without user and password.
    pub fn location(&self) -> String {
        let url = self.target().ok().and_then(|_| self.parsed());
        match url {
            Some(mut url) => {
                // These do not fail for a URL with a host.
                let _ = url.set_username("");
                let _ = url.set_password(None);
                url.to_string()
            }
            None => "a server without a valid URL".into(),
        }
    }

    /// The URL, if it has a known scheme and a host.
    fn parsed(&self) -> Option<Url> {
        Url::parse(&self.url)
            .ok()
            .filter(|url| [PLAIN, TLS].concat().contains(&url.scheme()))
            .filter(|url| url.host_str().is_some_and(|host| !host.is_empty()))
    }

    pub(super) fn target(&self) -> Result<Target, String> {
        // Errors must not repeat any part of the URL: in a wrong URL, the password may be anywhere.
        let url = self.parsed().ok_or(
            "the URL is not of the form valkey://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE] with one of the \
             schemes valkey, redis and, with TLS, valkeys, rediss; \
             special characters of a password are written as %XX",
        )?;
        let target = self.understood(&url);
        // The parsed URL holds a copy of the password.
        String::from(url).zeroize();
        target
    }

    fn understood(&self, url: &Url) -> Result<Target, String> {
        let tls = TLS.contains(&url.scheme());
        if url.query().is_some() || url.fragment().is_some() {
            return Err("the URL has a ? or #; write settings as options".into());
        }
        if self.ca_file.is_some() && !tls {
            return Err("ca_file needs a URL with TLS: valkeys://… or rediss://…".into());
        }
        if self.tls_cert_file.is_some() != self.tls_key_file.is_some() {
            return Err("tls_cert_file and tls_key_file belong together; set both".into());
        }
        if self.tls_cert_file.is_some() && !tls {
            return Err("tls_cert_file needs a URL with TLS: valkeys://… or rediss://…".into());
        }
        if !(1..=MAX_PARTITIONS).contains(&self.partitions) {
            return Err(format!("partitions must be from 1 to {MAX_PARTITIONS}"));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => String::new(),
        };
        if host == "0.0.0.0" || host == "::" {
            return Err("the URL's host is a wildcard address".into());
        }
        let database = match url.path().trim_matches('/') {
            "" => Some(0),
            // Servers count databases with 31 bits.
            database => database
                .parse::<u32>()
                .ok()
                .filter(|database| i32::try_from(*database).is_ok()),
        };
        let database = database.ok_or("the URL's database is not a number")?;
        if self.cluster && database != 0 {
            return Err("the URL names a database, but a cluster has only database 0".into());
        }
        let decoded = |text: &str| match percent_decode_str(text).decode_utf8() {
            Ok(text) => Ok(text.into_owned()),
            Err(_) => Err("the URL's user or password is not UTF-8".to_owned()),
        };
        let user_in_url = Some(decoded(url.username())?).filter(|user| !user.is_empty());
        let password = url
            .password()
            .filter(|password| !password.is_empty())
            .map(|password| decoded(password).map(Zeroizing::new))
            .transpose()?;
        if password.is_some() && self.password != Password::Url {
            return Err("the URL has a password, and so has an option; give it once".into());
        }
        let user = self.user.clone().or(user_in_url);
        if user.is_some() && password.is_none() && self.password == Password::Url {
            return Err("there is a user but no password".into());
        }
        Ok(Target {
            host,
            port: url.port().unwrap_or(DEFAULT_PORT),
            tls,
            database,
            user,
            password,
        })
    }

    /// The password from wherever it is; `None` if there is none.
    pub(super) fn secret(&self, target: &Target) -> Result<Option<Zeroizing<String>>, String> {
        let (secret, of) = match &self.password {
            Password::Url => return Ok(target.password.clone()),
            Password::File(path) => (
                fs::read_to_string(path).map_err(|error| error.to_string()),
                format!("the password file {}", path.display()),
            ),
            Password::Env(name) => (
                // The error is not shown: for a value that is not UTF-8 it contains the value.
                std::env::var(name).map_err(|_| "not set, or not UTF-8".into()),
                format!("the variable {name} for the password"),
            ),
        };
        let secret = secret.map(Zeroizing::new);
        match secret
            .as_deref()
            .map(|secret| secret.trim_end_matches(['\r', '\n']))
        {
            Ok("") => Err(format!("{of}: empty")),
            Ok(secret) => Ok(Some(Zeroizing::new(secret.into()))),
            Err(error) => Err(format!("{of}: {error}")),
        }
    }
}

impl fmt::Debug for ValkeyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValkeyConfig")
            .field("url", &self.location())
            .field("user", &self.user)
            .field("password", &self.password)
            .field("ca_file", &self.ca_file)
            .field("tls_cert_file", &self.tls_cert_file)
            .field("tls_key_file", &self.tls_key_file)
            .field("cluster", &self.cluster)
            .field("partitions", &self.partitions)
            .finish()
    }
}
