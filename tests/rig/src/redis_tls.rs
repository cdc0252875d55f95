//! A Redis that is reached over TLS, with a certificate that only this test's own authority vouches
//! for.

use crate::programs;
use crate::redis::Redis;
use crate::rig::Rig;
use crate::skip::skip_or_fail;
use std::fs;
use std::path::PathBuf;

const EXTENSIONS: &str = "
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1, DNS:localhost
";

const CERTIFY: &str = "
new='-config extensions -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
openssl req $new -x509 -extensions authority -days 2 -subj '/CN=authority' -keyout ca.key -out ca.pem
openssl req $new -subj '/CN=server' -keyout server.key -out server.csr
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
    -extfile extensions -extensions server -out server.pem
";

impl Rig {
    /// Starts a Redis that is reached over TLS. Returns `None`, after reporting the skip, if
    /// openssl, Redis or a machine of the rig's own is not available.
    #[track_caller]
    pub fn redis_with_tls(&self) -> Option<TlsRedis> {
        if !programs::works("openssl", &["version"]) {
            skip_or_fail("redis", "openssl");
            return None;
        }
        let (port, folder) = (self.port(), self.path("tls"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("extensions"), EXTENSIONS).unwrap();
        let output = programs::command("sh").args(["-ec", CERTIFY]).current_dir(&folder).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let [ca, certificate, key] = ["ca.pem", "server.pem", "server.key"]
            .map(|name| folder.join(name).to_str().unwrap().to_owned());
        let mut options = vec!["--tls-auth-clients", "no", "--tls-ca-cert-file", &ca];
        let text = port.to_string();
        options.extend(["--tls-cert-file", &certificate, "--tls-key-file", &key]);
        options.extend(["--tls-port", &text]);
        Some(TlsRedis { server: self.redis_with(&options)?, port, ca: ca.into() })
    }
}

/// A Redis that is reached over TLS.
pub struct TlsRedis {
    /// The server, which is also reached without TLS, at another port.
    pub server: Redis,
    port: u16,
    ca: PathBuf,
}

impl TlsRedis {
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}/0", self.port)
    }

    /// Returns the file of the authority's certificate, for `SSL_CERT_FILE`.
    pub fn ca(&self) -> PathBuf {
        self.ca.clone()
    }
}
