package device

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/throttle"
)

const (
	// ClaimCodeLifetime is how long a claim code is good.
	ClaimCodeLifetime = 10 * time.Minute

	claimCodeLength = 8
	// claimAlphabet has no 0, 1, I, L and O. 31^8 codes are 8.5 * 10^11.
	claimAlphabet = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"

	secretBytes = 32
	// secretPrefix lets a secret be recognised where it should not be.
	secretPrefix = "mqd_"
	secretLength = len(secretPrefix) + (secretBytes*8+5)/6
)

// ClaimCode is a code as it is stored.
type ClaimCode struct {
	Hash       []byte // SHA-256
	CreateTime time.Time
	ExpireTime time.Time
}

// Credentials are what a player connects with.
type Credentials struct {
	DeviceID string
	Secret   string
}

// What players that claim a device are told.
var (
	ErrClaimCodeInvalid = fault.New(fault.Unauthenticated, "CLAIM_CODE_INVALID", "this is no claim code, or it was used or has expired: ask for a new one")
	ErrClaimsThrottled  = fault.New(fault.ResourceExhausted, "CLAIMS_THROTTLED", "too many wrong claim codes")
)

// Throttle bounds how many claim codes can be tried.
type Throttle struct {
	// Address is for one IPv4 address or IPv6 network of 64 bits, which displays of
	// one place share.
	Address throttle.Budget
	// All is for everybody together.
	All throttle.Budget
}

// DefaultThrottle lets all attackers together try 6,600 codes while one is good:
// with 10,000 codes out at once they find one in 13,000 such times.
func DefaultThrottle() Throttle {
	return Throttle{
		Address: throttle.Budget{Burst: 10, Every: 6 * time.Second},
		All:     throttle.Budget{Burst: 600, Every: 100 * time.Millisecond},
	}
}

// CreateClaimCode makes the code of a device, in place of an earlier one. Errors:
// ErrNotFound.
func (s *Service) CreateClaimCode(ctx context.Context, organisationID, id string) (string, time.Time, error) {
	code, err := newClaimCode(s.random)
	if err != nil {
		return "", time.Time{}, err
	}
	now := s.moment()
	expires := now.Add(ClaimCodeLifetime)
	if err := s.store.PutClaimCode(ctx, organisationID, id, ClaimCode{Hash: hash(code), CreateTime: now, ExpireTime: expires}); err != nil {
		return "", time.Time{}, fmt.Errorf("storing a claim code: %w", err)
	}
	return code, expires, nil
}

// newClaimCode takes each character with the same probability: bytes that would
// favour some are thrown away.
func newClaimCode(random io.Reader) (string, error) {
	const even = 256 - 256%len(claimAlphabet)
	code := make([]byte, 0, claimCodeLength)
	var one [1]byte
	for len(code) < claimCodeLength {
		if _, err := io.ReadFull(random, one[:]); err != nil {
			return "", fmt.Errorf("reading random bytes: %w", err)
		}
		if int(one[0]) < even {
			code = append(code, claimAlphabet[int(one[0])%len(claimAlphabet)])
		}
	}
	return string(code), nil
}

// Claim trades a claim code for its device's credentials. address is where the
// call came from, or empty. Errors: ErrClaimCodeInvalid, ErrClaimsThrottled.
func (s *Service) Claim(ctx context.Context, code, address string) (Credentials, error) {
	now := s.moment()
	debits := []throttle.Debit{{Key: "all", Budget: s.throttle.All}}
	if network := throttle.Network(address); network != "" {
		debits = append(debits, throttle.Debit{Key: "address " + network, Budget: s.throttle.Address})
	}
	whole, err := s.store.ClaimFailures(ctx, throttle.Keys(debits))
	if err != nil {
		return Credentials{}, fmt.Errorf("reading the wrong claim codes: %w", err)
	}
	if wait := throttle.Wait(debits, whole, now); wait > 0 {
		return Credentials{}, ErrClaimsThrottled.WithRetryAfter(wait)
	}
	secret, err := newSecret(s.random)
	if err != nil {
		return Credentials{}, err
	}
	id, err := s.store.Claim(ctx, hash(normalClaimCode(code)), hash(secret), now)
	if errors.Is(err, ErrClaimCodeInvalid) {
		if countErr := s.store.CountClaimFailure(ctx, debits, now); countErr != nil {
			return Credentials{}, fmt.Errorf("counting a wrong claim code: %w", countErr)
		}
	}
	if err != nil {
		return Credentials{}, fmt.Errorf("claiming a device: %w", err)
	}
	return Credentials{DeviceID: id, Secret: secret}, nil
}

// normalClaimCode is a code as it was made, of what somebody typed.
func normalClaimCode(text string) string {
	return strings.ToUpper(strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' {
			return -1
		}
		return r
	}, text))
}

// Rotate replaces a device's credentials. Errors: ErrNotFound, ErrNotClaimed.
func (s *Service) Rotate(ctx context.Context, organisationID, id string) (Credentials, error) {
	secret, err := newSecret(s.random)
	if err != nil {
		return Credentials{}, err
	}
	if err := s.store.Rotate(ctx, organisationID, id, hash(secret), s.moment()); err != nil {
		return Credentials{}, fmt.Errorf("rotating credentials: %w", err)
	}
	return Credentials{DeviceID: id, Secret: secret}, nil
}

// Revoke makes a device's credentials and claim code worthless. Errors:
// ErrNotFound.
func (s *Service) Revoke(ctx context.Context, organisationID, id string) error {
	return s.store.Revoke(ctx, organisationID, id, s.moment())
}

func newSecret(random io.Reader) (string, error) {
	raw := make([]byte, secretBytes)
	if _, err := io.ReadFull(random, raw); err != nil {
		return "", fmt.Errorf("reading random bytes: %w", err)
	}
	return secretPrefix + base64.RawURLEncoding.EncodeToString(raw), nil
}

// hash is how codes and secrets are stored: a secret of 256 random bits needs no
// slow hash, and a code is worthless before one could be searched for.
func hash(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}
