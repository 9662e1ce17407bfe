package player

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Credentials are what a device connects with.
type Credentials struct {
	DeviceID string `json:"device_id"`
	Secret   string `json:"secret"`
}

// Identity is what a player keeps between its runs.
type Identity struct {
	Credentials
	// Servers are addresses to connect to, host:port or mqtts://host:port.
	Servers []string `json:"servers"`
	// Authorities are certificates (PEM) of who may sign those of servers; empty are
	// those that the machine trusts.
	Authorities string `json:"authorities,omitempty"`
	// Gateways are the URLs at which credentials are claimed, and media are.
	Gateways []string `json:"gateways"`
	// ClaimCode is the code that was traded for the credentials; it is worth nothing
	// any more.
	ClaimCode string `json:"claim_code"`
}

const identityFile = "player.json"

// ReadIdentity returns what is kept in a folder, the zero value when it is nothing.
func ReadIdentity(dir string) (Identity, error) {
	text, err := os.ReadFile(filepath.Join(dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{}, nil
	}
	if err != nil {
		return Identity{}, fmt.Errorf("reading who this player is: %w", err)
	}
	var i Identity
	if err := json.Unmarshal(text, &i); err != nil {
		return Identity{}, fmt.Errorf("reading who this player is, in %s: %w", filepath.Join(dir, identityFile), err)
	}
	return i, nil
}

// Keep writes it to a folder, for the user of the process alone.
func (i Identity) Keep(dir string) error {
	text, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return fmt.Errorf("keeping who this player is: %w", err)
	}
	return keep(filepath.Join(dir, identityFile), append(text, '\n'))
}

// ErrClaimCode is a claim code that is not good, or not any more.
var ErrClaimCode = errors.New("the claim code is wrong, or was used, or has expired: have a new one made")

// NormalClaimCode is a code as it was made, of what somebody typed.
func NormalClaimCode(text string) string {
	return strings.ToUpper(strings.NewReplacer(" ", "", "-", "").Replace(text))
}

// Claim trades a claim code for credentials, at the first of these gateways that can
// be reached. Errors: ErrClaimCode.
func Claim(ctx context.Context, gateways []string, code string) (c Credentials, err error) {
	for _, gateway := range gateways {
		var unreached *net.OpError
		// After any other error the code may be used up.
		if c, err = claim(ctx, gateway, code); !errors.As(err, &unreached) || unreached.Op != "dial" {
			return c, err
		}
	}
	return c, err
}

func claim(ctx context.Context, gateway, code string) (Credentials, error) {
	const within, most = 30 * time.Second, 64 << 10
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	body, err := json.Marshal(map[string]string{"claimCode": code})
	if err != nil {
		return Credentials{}, fmt.Errorf("claiming: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(gateway, "/")+"/v1/devices:claim", bytes.NewReader(body))
	if err != nil {
		return Credentials{}, fmt.Errorf("claiming: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return Credentials{}, fmt.Errorf("claiming: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, most))
	switch {
	case err != nil:
		return Credentials{}, fmt.Errorf("claiming: reading the answer: %w; the code may be used up: have a new one made", err)
	case res.StatusCode == http.StatusTooManyRequests:
		return Credentials{}, fmt.Errorf("claiming: too many wrong codes came from this address; try again in %s seconds", res.Header.Get("Retry-After"))
	case res.StatusCode == http.StatusUnauthorized:
		return Credentials{}, fmt.Errorf("claiming: %w", ErrClaimCode)
	case res.StatusCode != http.StatusOK:
		return Credentials{}, fmt.Errorf("claiming: %s answers %s: %.300q", gateway, res.Status, text)
	}
	var answer struct {
		Credentials struct {
			DeviceID string `json:"deviceId"`
			Secret   string `json:"secret"`
		} `json:"credentials"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return Credentials{}, fmt.Errorf("claiming: %s does not answer as a gateway does: %w", gateway, err)
	}
	c := Credentials(answer.Credentials)
	if err := c.check(); err != nil {
		return Credentials{}, fmt.Errorf("claiming: %s does not answer as a gateway does: %w", gateway, err)
	}
	return c, nil
}

// Device ids are names of folders.
var devicePattern = regexp.MustCompile(`^dev_[0-9A-Z]{26}$`)

func (c Credentials) check() error {
	if !devicePattern.MatchString(c.DeviceID) {
		return fmt.Errorf("%q is no device id: dev_ and 26 characters", c.DeviceID)
	}
	if c.Secret == "" {
		return fmt.Errorf("%s has no secret", c.DeviceID)
	}
	return nil
}

// ReadCredentials reads a device id and a secret from each line of a file; empty
// lines, and those that begin with #, are left out.
func ReadCredentials(path string) (all []Credentials, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading credentials: %w", err)
	}
	defer f.Close()
	seen := make(map[string]int)
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("%s, line %d: it has %d words; write a device id and its secret", path, n, len(fields))
		}
		c := Credentials{fields[0], fields[1]}
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		if before, ok := seen[c.DeviceID]; ok {
			return nil, fmt.Errorf("%s, line %d: %s is in line %d, too", path, n, c.DeviceID, before)
		}
		seen[c.DeviceID] = n
		all = append(all, c)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading credentials: %w", err)
	}
	return all, nil
}
