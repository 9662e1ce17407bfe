package account

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

const secretBytes = 32

// Secret is what all instances know and the database does not: it seals the
// private signing keys and makes fingerprints of sign-ups that cannot be
// searched for their passwords.
type Secret struct {
	aead         cipher.AEAD
	fingerprints []byte
}

// ParseSecret reads 32 random bytes written as base64 or hex, as the file of
// --key-encryption-key-file holds them.
func ParseSecret(text string) (*Secret, error) {
	text = strings.TrimSpace(text)
	var key []byte
	for _, decode := range []func(string) ([]byte, error){
		hex.DecodeString,
		base64.StdEncoding.DecodeString, base64.RawStdEncoding.DecodeString,
		base64.URLEncoding.DecodeString, base64.RawURLEncoding.DecodeString,
	} {
		if b, err := decode(text); err == nil && len(b) == secretBytes {
			key = b
			break
		}
	}
	if key == nil {
		return nil, errors.New("want 32 random bytes as base64 or hex, as `openssl rand -base64 32` prints them")
	}
	// One purpose a key: neither tells anything about the other.
	sealing, err := hkdf.Key(sha256.New, key, nil, "marquee account: signing keys", secretBytes)
	if err != nil {
		return nil, fmt.Errorf("deriving the sealing key: %w", err)
	}
	fingerprints, err := hkdf.Key(sha256.New, key, nil, "marquee account: sign-ups", secretBytes)
	if err != nil {
		return nil, fmt.Errorf("deriving the fingerprint key: %w", err)
	}
	block, err := aes.NewCipher(sealing)
	if err != nil {
		return nil, fmt.Errorf("making the sealing cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("making the sealing cipher: %w", err)
	}
	return &Secret{aead: aead, fingerprints: fingerprints}, nil
}

// seal encrypts and binds to a name, so that a sealed key cannot stand in for
// another.
func (s *Secret) seal(plain []byte, name string, random io.Reader) ([]byte, error) {
	nonce := make([]byte, s.aead.NonceSize())
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("reading random bytes: %w", err)
	}
	return s.aead.Seal(nonce, nonce, plain, []byte(name)), nil
}

func (s *Secret) open(sealed []byte, name string) ([]byte, error) {
	if len(sealed) < s.aead.NonceSize() {
		return nil, errors.New("sealed bytes are cut short")
	}
	nonce, text := sealed[:s.aead.NonceSize()], sealed[s.aead.NonceSize():]
	plain, err := s.aead.Open(nil, nonce, text, []byte(name))
	if err != nil {
		return nil, fmt.Errorf("the key encryption key does not open %s; it must be the one that sealed it: %w", name, err)
	}
	return plain, nil
}

// fingerprint tells bodies apart without giving their content away.
func (s *Secret) fingerprint(fields ...string) []byte {
	mac := hmac.New(sha256.New, s.fingerprints)
	for _, f := range fields {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(f)))
		mac.Write(length[:])
		mac.Write([]byte(f))
	}
	return mac.Sum(nil)
}
