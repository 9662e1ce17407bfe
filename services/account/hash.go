package account

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
)

const (
	saltBytes = 16
	hashBytes = 32
	// maxMemoryKiB is more than any sensible setting: a hash that asks for more
	// is damaged, and must not take the process down.
	maxMemoryKiB = 1 << 20
	maxTime      = 64
)

// HashParams are the cost of argon2id.
type HashParams struct {
	MemoryKiB uint32
	Time      uint32 // passes
	Threads   uint8
}

// Validate refuses parameters that argon2id cannot work with, or that take a
// process down, with a *SettingError.
func (p HashParams) Validate() error {
	switch {
	case p.Threads < 1:
		return wrongSetting("Threads", "argon2id with 0 threads: want 1 to 255")
	case p.Time < 1 || p.Time > maxTime:
		return wrongSetting("Time", "argon2id with %d passes: want 1 to %d", p.Time, maxTime)
	case p.MemoryKiB < 8*uint32(p.Threads) || p.MemoryKiB > maxMemoryKiB:
		return wrongSetting("MemoryKiB", "argon2id with %d KiB: want 8 KiB for each of its threads, which are %d, to %d KiB", p.MemoryKiB, p.Threads, maxMemoryKiB)
	}
	return nil
}

// Hasher hashes and verifies passwords with argon2id. Each hash keeps a core
// busy for tens of milliseconds and fills the memory of its parameters, so only
// a few are made at once; callers take a turn first.
type Hasher struct {
	params HashParams
	random io.Reader
	turns  *turns
	nobody string // hash of a password that nobody has
}

// NewHasher makes a hasher that lets concurrency callers work at once and queue
// more wait.
func NewHasher(params HashParams, concurrency, queue int, random io.Reader) (*Hasher, error) {
	if err := params.Validate(); err != nil {
		return nil, err
	}
	if concurrency < 1 || queue < 0 {
		return nil, fmt.Errorf("password hashing with %d at once and %d waiting: want at least 1 and 0", concurrency, queue)
	}
	h := &Hasher{params: params, random: random, turns: newTurns(concurrency, queue)}
	password := make([]byte, 32)
	if _, err := io.ReadFull(random, password); err != nil {
		return nil, fmt.Errorf("reading random bytes: %w", err)
	}
	var err error
	h.nobody, err = h.Hash(string(password))
	return h, err
}

// Turn waits for a turn to hash; done gives it back, and is called once. It fails
// with ErrOverloaded at once when too many come, or after a wait that takes too
// long, and with the context's error when that ends first.
func (h *Hasher) Turn(ctx context.Context) (done func(), err error) { return h.turns.take(ctx) }

// Hash returns the password's hash in PHC string form, with its parameters.
func (h *Hasher) Hash(password string) (string, error) {
	salt := make([]byte, saltBytes)
	if _, err := io.ReadFull(h.random, salt); err != nil {
		return "", fmt.Errorf("reading random bytes: %w", err)
	}
	p := h.params
	return phc{p, salt, p.key(password, salt, hashBytes)}.String(), nil
}

// Verify says whether the hash is the password's, and whether it was made with
// other parameters than today's and should be made anew.
func (h *Hasher) Verify(password, hash string) (match, outdated bool, err error) {
	stored, err := parsePHC(hash)
	if err != nil {
		return false, false, fmt.Errorf("reading a stored password hash: %w", err)
	}
	key := stored.params.key(password, stored.salt, uint32(len(stored.hash)))
	match = subtle.ConstantTimeCompare(key, stored.hash) == 1
	return match, stored.params != h.params || len(stored.hash) != hashBytes || len(stored.salt) != saltBytes, nil
}

// VerifyNobody costs what Verify costs, for a name that no account has: how long
// the answer takes must not tell whether the name exists.
func (h *Hasher) VerifyNobody(password string) error {
	_, _, err := h.Verify(password, h.nobody)
	return err
}

func (p HashParams) key(password string, salt []byte, length uint32) []byte {
	return argon2.IDKey([]byte(password), salt, p.Time, p.MemoryKiB, p.Threads, length)
}

// phc is a hash with its parameters in the string form of the password hashing
// competition: $argon2id$v=19$m=19456,t=2,p=1$<salt>$<hash>.
type phc struct {
	params HashParams
	salt   []byte
	hash   []byte
}

func (s phc) String() string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, s.params.MemoryKiB, s.params.Time, s.params.Threads,
		b64.EncodeToString(s.salt), b64.EncodeToString(s.hash))
}

func parsePHC(text string) (phc, error) {
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return phc{}, errors.New("not an argon2id hash in PHC string form")
	}
	if parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return phc{}, fmt.Errorf("argon2 version %q is not supported", parts[2])
	}
	var s phc
	for i, field := range []struct {
		prefix string
		bits   int
	}{{"m=", 32}, {"t=", 32}, {"p=", 8}} {
		values := strings.Split(parts[3], ",")
		if len(values) != 3 || !strings.HasPrefix(values[i], field.prefix) {
			return phc{}, fmt.Errorf("parameters %q are not m=,t=,p=", parts[3])
		}
		n, err := strconv.ParseUint(values[i][len(field.prefix):], 10, field.bits)
		if err != nil {
			return phc{}, fmt.Errorf("parameter %s: %w", values[i], err)
		}
		switch i {
		case 0:
			s.params.MemoryKiB = uint32(n)
		case 1:
			s.params.Time = uint32(n)
		case 2:
			s.params.Threads = uint8(n)
		}
	}
	if err := s.params.Validate(); err != nil {
		return phc{}, err
	}
	var err error
	if s.salt, err = base64.RawStdEncoding.Strict().DecodeString(parts[4]); err != nil {
		return phc{}, fmt.Errorf("salt: %w", err)
	}
	if s.hash, err = base64.RawStdEncoding.Strict().DecodeString(parts[5]); err != nil {
		return phc{}, fmt.Errorf("hash: %w", err)
	}
	if len(s.salt) < 8 || len(s.hash) < 16 || len(s.hash) > 64 {
		return phc{}, fmt.Errorf("a salt of %d bytes and a hash of %d bytes", len(s.salt), len(s.hash))
	}
	return s, nil
}
