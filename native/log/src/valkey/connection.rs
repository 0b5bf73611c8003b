//! One connection to a server, by TCP or TLS. No call on it outlasts its deadline.

use std::fs;
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::{Duration, Instant};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use zeroize::{Zeroize, Zeroizing};

use super::config::{Target, ValkeyConfig};
use super::resp::{self, Budget, Fault, Value};

/// How long making a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a server may stay silent if it has nothing to wait for.
pub(super) const ANSWER: Duration = Duration::from_secs(3);
/// A connection that was idle longer than this is tested before it is used for commands that must not be sent twice.
const IDLE: Duration = Duration::from_secs(1);

/// A server's host and port.
pub(super) type Address = (String, u16);

/// Why a call on a connection failed.
#[derive(Debug)]
pub(super) struct Broken {
    /// A line for the operator.
    pub(super) words: String,
    /// Whether the server, or something on the way, ended the connection.
    pub(super) lost: bool,
}

impl Broken {
    pub(super) fn new(words: impl Into<String>) -> Self {
        Self {
            words: words.into(),
            lost: false,
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        let lost = matches!(
            error.kind(),
            ErrorKind::UnexpectedEof
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::NotConnected
        );
        let words = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer in time".into(),
            ErrorKind::UnexpectedEof => "the connection was lost: the server closed it".into(),
            _ if lost => format!("the connection was lost: {error}"),
            _ => error.to_string(),
        };
        Self {
            words: resp::printable(&words, 300),
            lost,
        }
    }
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Io(error) => error.into(),
            Fault::Nonsense => Self::new("its answer makes no sense"),
            Fault::TooMuch => Self::new("its answer is too long"),
        }
    }
}

/// A socket whose operations all end before a deadline.
struct Timed {
    socket: TcpStream,
    deadline: Instant,
    /// How long the other side may be silent before the deadline.
    silence: Duration,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.min(self.silence) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            // The system counts in microseconds at best, and takes 0 as no limit.
            left => Ok(left.max(Duration::from_millis(1))),
        }
    }
}

/// Repeats a call that a signal interrupts. The system does not do that for sockets with a timeout, even if the process was
/// only stopped and continued (signal(7)).
fn uninterrupted<R>(mut call: impl FnMut() -> io::Result<R>) -> io::Result<R> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| {
            self.socket.set_read_timeout(Some(self.left()?))?;
            self.socket.read(buffer)
        })
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        uninterrupted(|| {
            self.socket.set_write_timeout(Some(self.left()?))?;
            self.socket.write(buffer)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

enum Transport {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

impl Transport {
    fn timed(&mut self) -> &mut Timed {
        match self {
            Self::Plain(timed) => timed,
            Self::Tls(stream) => &mut stream.sock,
        }
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(timed) => timed.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// A connection that is logged in.
pub(super) struct Connection {
    stream: BufReader<Transport>,
    used: Instant,
}

impl Connection {
    /// Connects and logs in.
    pub(super) fn open(
        config: &ValkeyConfig,
        target: &Target,
        (host, port): &Address,
        deadline: Instant,
    ) -> Result<Self, Broken> {
        let secret = config.secret(target).map_err(Broken::new)?;
        let tls = match target.tls {
            true => Some(client(config, host).map_err(Broken::new)?),
            false => None,
        };
        let deadline = deadline.min(Instant::now() + CONNECT);
        let timed = Timed {
            socket: connect(host, *port, deadline)?,
            deadline,
            silence: CONNECT,
        };
        let transport = match tls {
            Some(client) => Transport::Tls(Box::new(StreamOwned::new(client, timed))),
            None => Transport::Plain(timed),
        };
        let mut connection = Self {
            stream: BufReader::with_capacity(32 << 10, transport),
            used: Instant::now(),
        };
        if let Some(secret) = secret {
            let user = target.user.as_ref().map(|user| user.as_bytes());
            let words: Vec<&[u8]> = [Some(&b"AUTH"[..]), user, Some(secret.as_bytes())]
                .into_iter()
                .flatten()
                .collect();
            let login = Zeroizing::new(resp::encode(&words));
            // The rest of an error may repeat the password.
            match connection.ask(&login, deadline)? {
                Value::Text(_) => {}
                Value::Error(error) if error.contains("max number of clients") => {
                    return Err(Broken::new("the server has no room for more connections"))
                }
                Value::Error(_) => return Err(Broken::new("the user or the password is refused")),
                _ => return Err(Fault::Nonsense.into()),
            }
        }
        // A server may refuse this command and still be fine.
        connection.ask(
            &resp::encode(&[b"CLIENT", b"SETNAME", b"rekindle"]),
            deadline,
        )?;
        if target.database != 0 {
            let database = target.database.to_string();
            let select = resp::encode(&[b"SELECT", database.as_bytes()]);
            if let Value::Error(error) = connection.ask(&select, deadline)? {
                return Err(Broken::new(error));
            }
        }
        Ok(connection)
    }

    fn ask(&mut self, command: &[u8], deadline: Instant) -> Result<Value, Broken> {
        self.send(command, deadline)?;
        self.receive(deadline, ANSWER, &mut Budget::SHORT.clone())
    }

    /// Sends commands.
    pub(super) fn send(&mut self, commands: &[u8], deadline: Instant) -> Result<(), Broken> {
        let timed = self.stream.get_mut().timed();
        timed.deadline = deadline;
        timed.silence = ANSWER;
        self.stream.get_mut().write_all(commands)?;
        self.stream.get_mut().flush()?;
        Ok(())
    }

    /// Receives the next answer.
    pub(super) fn receive(
        &mut self,
        deadline: Instant,
        silence: Duration,
        budget: &mut Budget,
    ) -> Result<Value, Broken> {
        let timed = self.stream.get_mut().timed();
        timed.deadline = deadline;
        timed.silence = silence;
        let answer = resp::read(&mut self.stream, budget)?;
        self.used = Instant::now();
        Ok(answer)
    }

    /// Whether the connection can be used, as far as that can be known in advance. If it was idle for a while, the
    /// server is asked for a sign of life.
    pub(super) fn is_alive(&mut self, deadline: Instant) -> bool {
        if self.is_closed() {
            return false;
        }
        if self.used.elapsed() < IDLE {
            return true;
        }
        let deadline = deadline.min(Instant::now() + CONNECT);
        // A user without the right to PING gets an answer as well: an error.
        self.ask(&resp::encode(&[b"PING"]), deadline).is_ok()
    }

    /// Whether the server has ended the connection, or sent something that nobody asked for.
    fn is_closed(&mut self) -> bool {
        if !self.stream.buffer().is_empty() {
            return true;
        }
        let socket = &self.stream.get_mut().timed().socket;
        if socket.set_nonblocking(true).is_err() {
            return true;
        }
        let quiet = socket
            .peek(&mut [0])
            .is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        socket.set_nonblocking(false).is_err() || !quiet
    }
}

/// Connects to the first address of a host that accepts the connection.
fn connect(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, Broken> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the host has no address");
    for address in addresses(host, port, deadline)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(ErrorKind::TimedOut).into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

fn addresses(host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, Broken> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    // The system's resolver takes no deadline, so it runs in a thread that may stay behind.
    let (found, wanted) = mpsc::channel();
    let name = host.to_owned();
    thread::Builder::new()
        .name("rekindle-dns".into())
        .spawn(move || {
            let addresses = (name.as_str(), port).to_socket_addrs();
            let _ = found.send(addresses.map(|all| all.collect::<Vec<_>>()));
        })?;
    match wanted.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(addresses) => Ok(addresses?),
        Err(_) => Err(Broken::new("the host's name was not resolved in time")),
    }
}

/// The client's side of TLS. The files are read again for each connection, as somebody may have replaced them.
fn client(config: &ValkeyConfig, host: &str) -> Result<ClientConnection, String> {
    let mut roots = RootCertStore::empty();
    match &config.ca_file {
        Some(path) => {
            let ca = |error: String| format!("the CA file {}: {error}", path.display());
            for certificate in certificates(path).map_err(ca)? {
                roots
                    .add(certificate)
                    .map_err(|error| ca(error.to_string()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("the system has no CA certificates; set the option ca_file".into());
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let tls = match (&config.tls_cert_file, &config.tls_key_file) {
        (Some(certificate), Some(key)) => {
            let identity = identity(certificate, key)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
        }
        _ => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    ClientConnection::new(Arc::new(tls), name).map_err(|error| error.to_string())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = fs::read(path).map_err(|error| error.to_string())?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("no certificate in it".into()),
        found => found.map_err(|error| error.to_string()),
    }
}

/// The certificate that this client shows, with its key.
fn identity(certificate: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let of_certificate = |error| format!("the certificate file {}: {error}", certificate.display());
    let of_key = |error: String| format!("the key file {}: {error}", key.display());
    let chain = certificates(certificate).map_err(of_certificate)?;
    let pem = fs::read(key).map_err(|error| of_key(error.to_string()))?;
    let pem = Zeroizing::new(pem);
    // Errors about the file's content are not repeated, because the content is secret.
    let mut der =
        PrivateKeyDer::from_pem_slice(&pem).map_err(|_| of_key("no private key in it".into()))?;
    let signer = ring::sign::any_supported_type(&der);
    der.zeroize();
    let signer = signer.map_err(|_| of_key("this kind of private key is not supported".into()))?;
    let identity = CertifiedKey::new(chain, signer);
    identity.keys_match().map_err(|_| {
        of_key(format!(
            "it does not belong to the certificate in {}",
            certificate.display()
        ))
    })?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_signals_interrupt_is_repeated() {
        let interrupted = || Err(io::Error::from(ErrorKind::Interrupted));
        let mut results = vec![Ok(7), interrupted(), interrupted()];
        assert_eq!(uninterrupted(|| results.pop().unwrap()).unwrap(), 7);
        let closed = uninterrupted(|| Err::<(), _>(ErrorKind::ConnectionReset.into()));
        assert_eq!(closed.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
