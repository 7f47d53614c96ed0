//! The versions and cipher suites that can be agreed on.

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246, for peers that have nothing newer; only where it is switched on.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl TlsVersion {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        }
    }

    /// As on the wire.
    pub const fn code_point(self) -> u16 {
        match self {
            Self::Tls12 => 0x0303,
            Self::Tls13 => 0x0304,
        }
    }
}

/// The negotiated suite. It belongs to exactly one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CipherSuite {
    Aes256GcmSha384,
    Aes128GcmSha256,
    /// The others are of TLS 1.2 (RFC 5289).
    EcdheEcdsaAes256GcmSha384,
    EcdheEcdsaAes128GcmSha256,
    EcdheRsaAes256GcmSha384,
    EcdheRsaAes128GcmSha256,
}

impl CipherSuite {
    pub const ALL: [Self; 6] = [
        Self::Aes256GcmSha384,
        Self::Aes128GcmSha256,
        Self::EcdheEcdsaAes256GcmSha384,
        Self::EcdheEcdsaAes128GcmSha256,
        Self::EcdheRsaAes256GcmSha384,
        Self::EcdheRsaAes128GcmSha256,
    ];

    /// The name in the TLS registry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256GcmSha384 => "TLS_AES_256_GCM_SHA384",
            Self::Aes128GcmSha256 => "TLS_AES_128_GCM_SHA256",
            Self::EcdheEcdsaAes256GcmSha384 => "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            Self::EcdheEcdsaAes128GcmSha256 => "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            Self::EcdheRsaAes256GcmSha384 => "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
            Self::EcdheRsaAes128GcmSha256 => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        }
    }

    /// The number in the TLS registry.
    pub const fn code_point(self) -> u16 {
        match self {
            Self::Aes256GcmSha384 => 0x1302,
            Self::Aes128GcmSha256 => 0x1301,
            Self::EcdheEcdsaAes256GcmSha384 => 0xc02c,
            Self::EcdheEcdsaAes128GcmSha256 => 0xc02b,
            Self::EcdheRsaAes256GcmSha384 => 0xc030,
            Self::EcdheRsaAes128GcmSha256 => 0xc02f,
        }
    }

    pub const fn version(self) -> TlsVersion {
        match self {
            Self::Aes256GcmSha384 | Self::Aes128GcmSha256 => TlsVersion::Tls13,
            Self::EcdheEcdsaAes256GcmSha384
            | Self::EcdheEcdsaAes128GcmSha256
            | Self::EcdheRsaAes256GcmSha384
            | Self::EcdheRsaAes128GcmSha256 => TlsVersion::Tls12,
        }
    }

    /// The one of this registry number.
    pub(super) fn of(suite: rustls::CipherSuite) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.code_point() == u16::from(suite))
    }
}
