package account

import (
	"context"
	"crypto/hmac"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/marquee-ads/marquee/platform/throttle"
)

// Throttle bounds how many passwords can be tried, and what else would cost others
// something. A wrong password is counted after it was found wrong: attempts that
// are judged at the same moment, no more than hashes are made at once, may go
// beyond the burst.
type Throttle struct {
	// Name is for one account's name, whether an account has it or not, by
	// strangers together; and apart from them by each known address, each known
	// device, and each session that changes its password.
	Name throttle.Budget
	// Address is for all names together, by one address that presents no known
	// device. An office may share it.
	Address throttle.Budget
	// APIKeys is for API keys made for one organisation: every key that is revoked
	// is remembered by all services while tokens of it may be valid.
	APIKeys throttle.Budget
}

// DefaultThrottle lets strangers guess about 2,900 passwords a day for a name:
// the weakest password that sign-up takes needs 10^6 (minScore).
func DefaultThrottle() Throttle {
	return Throttle{
		Name:    throttle.Budget{Burst: 10, Every: 30 * time.Second},
		Address: throttle.Budget{Burst: 50, Every: 2 * time.Second},
		APIKeys: throttle.Budget{Burst: 20, Every: 3 * time.Minute},
	}
}

// Validate refuses budgets of wrong passwords that let nothing or everything
// through, with a *SettingError.
func (t Throttle) Validate() error {
	for name, b := range map[string]throttle.Budget{"Name": t.Name, "Address": t.Address} {
		if b.Burst < 1 || b.Burst > maxBurst {
			return wrongSetting(name+".Burst", "%d wrong passwords at once: want 1 to %d", b.Burst, maxBurst)
		}
		if b.Every < time.Millisecond || b.Every > time.Hour {
			return wrongSetting(name+".Every", "one more wrong password each %s: want 1ms to 1h", b.Every)
		}
	}
	return nil
}

const maxBurst = 1 << 20

// budgetKey is a budget's key: a MAC, so that the database does not say who tries
// which names.
func (s *Service) budgetKey(fields ...string) string {
	return base64.RawURLEncoding.EncodeToString(s.secret.mac(ofFailures, fields...))
}

// debits are the budgets that an attempt counts against. known says that the
// account was logged in to from this address before.
func (s *Service) debits(accountID, nameKey string, known bool, deviceToken string, from Origin) []throttle.Debit {
	network := throttle.Network(from.Address)
	name := throttle.Debit{Key: s.budgetKey("name", nameKey), Budget: s.throttle.Name}
	if accountID != "" {
		if device, ok := s.secret.openDevice(accountID, deviceToken); ok {
			return []throttle.Debit{{Key: s.budgetKey("device", accountID, device), Budget: s.throttle.Name}}
		}
		if known && network != "" {
			name.Key = s.budgetKey("place", accountID, network)
		}
	}
	if network == "" {
		return []throttle.Debit{name}
	}
	return []throttle.Debit{name, {Key: s.budgetKey("address", network), Budget: s.throttle.Address}}
}

// admit fails with ErrThrottled, and when to try again, if one of the budgets is
// used up.
func (s *Service) admit(ctx context.Context, debits []throttle.Debit) error {
	whole, err := s.store.Failures(ctx, throttle.Keys(debits))
	if err != nil {
		return fmt.Errorf("reading the failed log-ins: %w", err)
	}
	if wait := throttle.Wait(debits, whole, s.now()); wait > 0 {
		return ErrThrottled.WithRetryAfter(wait)
	}
	return nil
}

const (
	devicePrefix   = "dev_"
	deviceMACBytes = 16
)

// newDevice makes a token that says: from here the account was logged in to. It
// is bound to the account and counts for nothing but a budget of its own.
func (s *Secret) newDevice(accountID string, now time.Time, random io.Reader) (string, error) {
	id, err := ulid.New(ulid.Timestamp(now), random)
	if err != nil {
		return "", fmt.Errorf("making a device's id: %w", err)
	}
	return s.device(accountID, id), nil
}

func (s *Secret) device(accountID string, id ulid.ULID) string {
	raw := slices.Concat(id[:], s.mac(ofDevices, accountID, id.String())[:deviceMACBytes])
	return devicePrefix + base64.RawURLEncoding.EncodeToString(raw)
}

// openDevice returns the device's id, if the token is the account's.
func (s *Secret) openDevice(accountID, token string) (string, bool) {
	encoded, ok := strings.CutPrefix(token, devicePrefix)
	if !ok {
		return "", false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) != 16+deviceMACBytes {
		return "", false
	}
	id := ulid.ULID(raw[:16])
	return id.String(), hmac.Equal([]byte(s.device(accountID, id)), []byte(token))
}
