package account

import (
	"context"
	"crypto/hmac"
	"encoding/base64"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// Budget is how many wrong passwords are let through: a burst at once, and one
// more each time that Every has passed.
type Budget struct {
	Burst int
	Every time.Duration
}

// Throttle bounds how many passwords can be tried.
type Throttle struct {
	// Name is for one account's name, whether an account has it or not, by
	// strangers together; and apart from them by each known address, each known
	// device, and each session that changes its password.
	Name Budget
	// Address is for all names together, by one address that presents no known
	// device. An office may share it.
	Address Budget
}

// DefaultThrottle lets strangers guess about 2,900 passwords a day for a name:
// the weakest password that sign-up takes needs 10^6 (minScore).
func DefaultThrottle() Throttle {
	return Throttle{
		Name:    Budget{Burst: 10, Every: 30 * time.Second},
		Address: Budget{Burst: 50, Every: 2 * time.Second},
	}
}

// Validate refuses budgets that let nothing or everything through, with a
// *SettingError.
func (t Throttle) Validate() error {
	for name, b := range map[string]Budget{"Name": t.Name, "Address": t.Address} {
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

// Failures is what the wrong passwords of one kind have used up. It is counted
// after a password was found wrong: attempts that are judged at the same moment,
// no more than hashes are made at once, may go beyond the burst.
type Failures struct {
	// Key tells kinds apart; it is a MAC, so that the database does not say who
	// tries which names.
	Key string
	// FreeTime is when the budget is whole again: each failure puts it off by
	// Budget.Every.
	FreeTime time.Time
}

// Debit is one failure to be counted.
type Debit struct {
	Key    string
	Budget Budget
}

// wait is how long until another attempt is let through.
func (b Budget) wait(free, now time.Time) time.Duration {
	return max(0, free.Sub(now)-time.Duration(b.Burst-1)*b.Every)
}

// debits are the budgets that an attempt counts against. known says that the
// account was logged in to from this address before.
func (s *Service) debits(accountID, nameKey string, known bool, deviceToken string, from Origin) []Debit {
	key := func(fields ...string) string {
		return base64.RawURLEncoding.EncodeToString(s.secret.mac(ofFailures, fields...))
	}
	network := network(from.Address)
	name := Debit{key("name", nameKey), s.throttle.Name}
	if accountID != "" {
		if device, ok := s.secret.openDevice(accountID, deviceToken); ok {
			return []Debit{{key("device", accountID, device), s.throttle.Name}}
		}
		if known && network != "" {
			name.Key = key("place", accountID, network)
		}
	}
	if network == "" {
		return []Debit{name}
	}
	return []Debit{name, {key("address", network), s.throttle.Address}}
}

// admit fails with ErrThrottled, and when to try again, if one of the budgets is
// used up.
func (s *Service) admit(ctx context.Context, debits []Debit) error {
	keys := make([]string, len(debits))
	for i, d := range debits {
		keys[i] = d.Key
	}
	used, err := s.store.Failures(ctx, keys)
	if err != nil {
		return fmt.Errorf("reading the failed log-ins: %w", err)
	}
	now, wait := s.now(), time.Duration(0)
	for _, f := range used {
		for _, d := range debits {
			if d.Key == f.Key {
				wait = max(wait, d.Budget.wait(f.FreeTime, now))
			}
		}
	}
	if wait > 0 {
		return ErrThrottled.WithRetryAfter((wait + time.Second - 1).Truncate(time.Second))
	}
	return nil
}

// network is what an attacker has at the price of one address: an IPv4 address,
// or the 64 bits of IPv6 within which they choose freely. It is empty for what is
// no address.
func network(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return ""
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	prefix, err := ip.Prefix(64)
	if err != nil {
		return ""
	}
	return prefix.String()
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
