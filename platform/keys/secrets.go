package keys

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/marquee-ads/marquee/platform/files"
)

// Secrets are the gossip keys, as both agents want them (AES-256 in base64), and
// the tokens (UUIDs).
type Secrets struct {
	ConsulGossip string `json:"consul_gossip"`
	NomadGossip  string `json:"nomad_gossip"`
	// The operator's, which may do everything.
	ConsulManagement string `json:"consul_management"`
	NomadManagement  string `json:"nomad_management"`
	// What Nomad's agents show to Consul.
	ConsulNomadServer string `json:"consul_nomad_server"`
	ConsulNomadClient string `json:"consul_nomad_client"`
	// Nodes are the Consul agents' tokens by machine.
	Nodes map[string]string `json:"nodes"`
	// Before are what Rotate replaced and bootstrap has not withdrawn yet.
	Before *Secrets `json:"before,omitempty"`
}

func (s *Secrets) fields() map[string]*string {
	return map[string]*string{
		"consul_gossip": &s.ConsulGossip, "nomad_gossip": &s.NomadGossip,
		"consul_management": &s.ConsulManagement, "nomad_management": &s.NomadManagement,
		"consul_nomad_server": &s.ConsulNomadServer, "consul_nomad_client": &s.ConsulNomadClient,
	}
}

func (s *Secrets) check() error {
	for name, field := range s.fields() {
		if *field == "" {
			return fmt.Errorf("%s is missing: marquee keys new adds it", name)
		}
	}
	return nil
}

// ensureSecrets fills in what is empty.
func (k *Keys) ensureSecrets(nodes []Node) error {
	var s Secrets
	text, err := k.read("secrets.json")
	switch {
	case errors.Is(err, ErrMissing):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(text, &s); err != nil {
			return fmt.Errorf("read %s: %w", filepath.Join(k.Dir, "secrets.json"), err)
		}
	}
	changed := false
	for name, field := range s.fields() {
		if *field != "" {
			continue
		}
		changed = true
		if name == "consul_gossip" || name == "nomad_gossip" {
			*field = GossipKey()
		} else {
			*field = UUID()
		}
	}
	if s.Nodes == nil {
		s.Nodes = map[string]string{}
	}
	for _, n := range nodes {
		if s.Nodes[n.Name] == "" {
			changed = true
			s.Nodes[n.Name] = UUID()
		}
	}
	if !changed {
		return nil
	}
	return k.writeSecrets(s)
}

func (k *Keys) writeSecrets(s Secrets) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := files.Replace(filepath.Join(k.Dir, "secrets.json"), append(text, '\n'), 0o600); err != nil {
		return err
	}
	k.Secrets = s
	return nil
}

// GossipKey is an AES-256 key as both agents want it.
func GossipKey() string {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails: crypto/rand ends the process instead
	return base64.StdEncoding.EncodeToString(key[:])
}

// UUID is a random token in the only form that both agents take.
func UUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // as above
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// ensureSSH makes the operator's key for SSH. The public half is written last.
func ensureSSH(dir string) error {
	path := filepath.Join(dir, "ssh")
	if _, err := os.Stat(path + ".pub"); err == nil {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%s.pub is there and %s is not: remove the one, and both are made again: %w", path, path, err)
		}
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the key for SSH: %w", err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make the key for SSH: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, "marquee operator")
	if err != nil {
		return fmt.Errorf("make the key for SSH: %w", err)
	}
	authorized, err := ssh.NewPublicKey(public)
	if err != nil {
		return fmt.Errorf("make the key for SSH: %w", err)
	}
	if err := files.Replace(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return err
	}
	return files.Replace(path+".pub", ssh.MarshalAuthorizedKey(authorized), 0o644)
}

// lockBound is how long another process may take to make its keys: a hundred
// machines' take a second.
const lockBound = 10 * time.Second

// lock keeps other processes from making the same keys. The kernel gives it back
// when its holder dies.
func lock(dir string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lockBound)
	defer cancel()
	f, err := files.Lock(ctx, filepath.Join(dir, ".lock"), nil)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("another process has been working on the keys in %s for %v: wait for it or end it: %w", dir, lockBound, err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the keys: %w", err)
	}
	return func() { f.Close() }, nil
}
