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
// private signing keys, makes fingerprints of requests that cannot be searched
// for their passwords, and authenticates the tokens that are handed out.
type Secret struct {
	aead cipher.AEAD
	keys [purposes][]byte
}

// purpose is what a key that is derived from the secret is for. One purpose a
// key: none tells anything about another.
type purpose int

const (
	ofSigningKeys purpose = iota
	ofSignUps
	ofRefreshTokens
	ofDevices
	ofFailures
	ofPages
	ofRequests
	ofInvitations
	ofAPIKeys
	purposes
)

// derivation is the info of HKDF for each purpose, which never changes.
var derivation = [purposes]string{
	ofSigningKeys:   "marquee account: signing keys",
	ofSignUps:       "marquee account: sign-ups",
	ofRefreshTokens: "marquee account: refresh tokens",
	ofDevices:       "marquee account: devices",
	ofFailures:      "marquee account: failed log-ins",
	ofPages:         "marquee account: page tokens",
	ofRequests:      "marquee account: requests",
	ofInvitations:   "marquee account: invitations",
	ofAPIKeys:       "marquee account: API keys",
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
	s := &Secret{}
	for purpose, info := range derivation {
		var err error
		if s.keys[purpose], err = hkdf.Key(sha256.New, key, nil, info, secretBytes); err != nil {
			return nil, fmt.Errorf("deriving the key %q: %w", info, err)
		}
	}
	block, err := aes.NewCipher(s.keys[ofSigningKeys])
	if err != nil {
		return nil, fmt.Errorf("making the sealing cipher: %w", err)
	}
	if s.aead, err = cipher.NewGCM(block); err != nil {
		return nil, fmt.Errorf("making the sealing cipher: %w", err)
	}
	return s, nil
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
func (s *Secret) fingerprint(fields ...string) []byte { return s.mac(ofSignUps, fields...) }

// mac is 32 bytes that only who knows the secret can make of these fields.
func (s *Secret) mac(key purpose, fields ...string) []byte {
	mac := hmac.New(sha256.New, s.keys[key])
	for _, f := range fields {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(f)))
		mac.Write(length[:])
		mac.Write([]byte(f))
	}
	return mac.Sum(nil)
}
