package keys

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Kind is what Rotate replaces together.
type Kind string

// The kinds. What is rotated here is made to hold in the cluster by
// bootstrap.Ensure, then by giving the machines their new files, then by
// bootstrap.Withdraw; see docs/operations.md.
const (
	// CA is what signs certificates. Rotate makes the next one and has it trusted
	// beside the one that signs on. When every machine has the new ca.pem, rotating
	// Certificates makes the next one sign, and when every machine has those,
	// WithdrawCA ends the trust in the old one.
	CA Kind = "ca"
	// Certificates of the operator and the machines. Old and new ones are good
	// beside each other.
	Certificates Kind = "certificates"
	// Gossip are the keys of both agents' gossip.
	Gossip Kind = "gossip"
	// Tokens are all tokens. Nomad's operator's is made by Nomad itself, in
	// bootstrap.Ensure.
	Tokens Kind = "tokens"
	// SSH is the operator's key for SSH.
	SSH Kind = "ssh"
)

// Rotate replaces kinds of keys, for all machines that there are keys for. What
// it replaces of gossip keys and tokens is kept in Secrets.Before, because the
// cluster still goes by it; nothing can be rotated again before that is settled.
func Rotate(dir string, now time.Time, kinds ...Kind) (*Keys, error) {
	if len(kinds) == 0 {
		return nil, errors.New("rotate what? ca, certificates, gossip, tokens or ssh")
	}
	if slices.Contains(kinds, CA) && slices.Contains(kinds, Certificates) {
		return nil, errors.New("rotate ca first, and certificates when all machines have got the new ca.pem: those that have not would refuse them")
	}
	if _, err := Load(dir); err != nil {
		return nil, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	k, err := Load(dir)
	if err != nil {
		return nil, err
	}
	for _, kind := range kinds {
		switch kind {
		case CA:
			err = k.rotateCA(now)
		case Certificates:
			err = k.rotateCertificates(now)
		case Gossip:
			err = k.rotateGossip()
		case Tokens:
			err = k.rotateTokens()
		case SSH:
			err = k.rotateSSH()
		default:
			err = fmt.Errorf("there is no kind of keys %q: want ca, certificates, gossip, tokens or ssh", kind)
		}
		if err != nil {
			return nil, err
		}
	}
	return Load(dir)
}

// rotateCA makes the next CA. Its key is written before its certificate: one
// without the other is what an interrupted run left, and is written over.
func (k *Keys) rotateCA(now time.Time) error {
	ca, err := k.authority(caKeyFile)
	if err != nil {
		return err
	}
	left, err := k.pendingCA(ca)
	if err != nil {
		return err
	}
	if left != "" {
		return errors.New(left)
	}
	der, key, err := makeCA(now)
	if err != nil {
		return err
	}
	if err := k.writeKey(nextKeyFile, key); err != nil {
		return err
	}
	return k.writeCertificates(caFile, ca.certificate.Raw, der)
}

// PendingCA says what is left to do of a rotation of the CA; "" is nothing.
func (k *Keys) PendingCA() (string, error) {
	ca, err := k.authority(caKeyFile)
	if err != nil {
		return "", err
	}
	return k.pendingCA(ca)
}

func (k *Keys) pendingCA(ca *authority) (string, error) {
	waits, err := k.nextCAWaits()
	switch {
	case err != nil:
		return "", err
	case waits:
		return "the CA was rotated, and the old one still signs: give the machines their new files one by one, then marquee keys rotate certificates", nil
	case len(ca.trusted) > 1:
		return "the CA was rotated, and the old one is still trusted: give the machines their new files one by one, then marquee keys withdraw ca", nil
	}
	return "", nil
}

// nextCAWaits says whether there is a CA that is trusted and does not sign yet.
func (k *Keys) nextCAWaits() (bool, error) {
	_, err := k.authority(nextKeyFile)
	if errors.Is(err, ErrMissing) || errors.Is(err, errStrangers) {
		return false, nil
	}
	return err == nil, err
}

// WithdrawCA ends the trust in the CA that was rotated away; machines learn that
// by their new files. All must have certificates of the new one by then: the
// others are trusted by nobody who has these. Without a rotation of the CA it
// does nothing.
func WithdrawCA(dir string) (*Keys, error) {
	if _, err := Load(dir); err != nil {
		return nil, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	k := &Keys{Dir: dir}
	waits, err := k.nextCAWaits()
	if err != nil {
		return nil, err
	}
	if waits {
		return nil, errors.New("the old CA still signs: marquee keys rotate certificates, and give the machines their new files one by one")
	}
	ca, err := k.authority(caKeyFile)
	if err != nil {
		return nil, err
	}
	certificates, err := k.Certificates()
	if err != nil {
		return nil, err
	}
	for _, c := range certificates {
		if c.File == k.CAFile() {
			continue
		}
		parsed, err := k.parse(c)
		if err != nil {
			return nil, err
		}
		if err := parsed.CheckSignatureFrom(ca.certificate); err != nil {
			return nil, fmt.Errorf("the certificate of %s is still the old CA's: marquee keys rotate certificates, and give the machines their new files one by one", c.Name)
		}
	}
	if err := k.writeCertificates(caFile, ca.certificate.Raw); err != nil {
		return nil, err
	}
	return Load(dir)
}

// parse reads a certificate of the folder.
func (k *Keys) parse(c Certificate) (*x509.Certificate, error) {
	relative, err := filepath.Rel(k.Dir, c.File)
	if err != nil {
		return nil, err
	}
	text, err := k.read(relative)
	if err != nil {
		return nil, err
	}
	return parseCertificate(c.File, text)
}

// rotateCertificates makes each anew for the names that it is good for. From here
// on the next CA signs, if there is one.
func (k *Keys) rotateCertificates(now time.Time) error {
	waits, err := k.nextCAWaits()
	if err != nil {
		return err
	}
	if waits {
		if err := os.Rename(filepath.Join(k.Dir, nextKeyFile), filepath.Join(k.Dir, caKeyFile)); err != nil {
			return fmt.Errorf("have the next CA sign: %w", err)
		}
	}
	ca, err := k.authority(caKeyFile)
	if err != nil {
		return err
	}
	all, err := k.Certificates()
	if err != nil {
		return err
	}
	for _, c := range all {
		if c.File == k.CAFile() {
			continue
		}
		relative, err := filepath.Rel(k.Dir, c.File)
		if err != nil {
			return err
		}
		old, err := k.parse(c)
		if err != nil {
			return err
		}
		if err := k.newPair(ca, pair{
			name: c.Name, certificateFile: relative, keyFile: strings.TrimSuffix(relative, ".pem") + "-key.pem",
			dns: old.DNSNames, addresses: old.IPAddresses, usage: append([]x509.ExtKeyUsage(nil), old.ExtKeyUsage...),
		}, now); err != nil {
			return err
		}
	}
	return nil
}

func (k *Keys) rotateGossip() error {
	s := k.Secrets
	before := s.before()
	if before.ConsulGossip != "" || before.NomadGossip != "" {
		return errors.New("the gossip keys were rotated before, and the cluster does not go by the new ones yet: marquee keys apply")
	}
	before.ConsulGossip, before.NomadGossip = s.ConsulGossip, s.NomadGossip
	s.ConsulGossip, s.NomadGossip = GossipKey(), GossipKey()
	s.Before = &before
	return k.writeSecrets(s)
}

func (k *Keys) rotateTokens() error {
	s := k.Secrets
	before := s.before()
	if before.ConsulManagement != "" {
		return errors.New("tokens were rotated before, and the old ones are still good: give the machines the new ones, then marquee keys withdraw")
	}
	before.ConsulManagement, before.NomadManagement = s.ConsulManagement, s.NomadManagement
	before.ConsulNomadServer, before.ConsulNomadClient, before.Nodes = s.ConsulNomadServer, s.ConsulNomadClient, s.Nodes
	s.ConsulManagement, s.ConsulNomadServer, s.ConsulNomadClient = UUID(), UUID(), UUID()
	s.Nodes = map[string]string{}
	for name := range before.Nodes {
		s.Nodes[name] = UUID()
	}
	s.Before = &before
	return k.writeSecrets(s)
}

func (s *Secrets) before() Secrets {
	if s.Before == nil {
		return Secrets{}
	}
	return *s.Before
}

func (k *Keys) rotateSSH() error {
	for _, name := range []string{"ssh.pub", "ssh"} {
		if err := os.Remove(filepath.Join(k.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the old key for SSH: %w", err)
		}
	}
	return ensureSSH(k.Dir)
}

// SetNomadManagement keeps the token that Nomad made for its operator.
func (k *Keys) SetNomadManagement(secret string) error {
	return k.update(func(s *Secrets) { s.NomadManagement = secret })
}

// SettleGossip forgets the old gossip keys: no agent has them any more.
func (k *Keys) SettleGossip() error {
	return k.update(func(s *Secrets) {
		before := s.before()
		before.ConsulGossip, before.NomadGossip = "", ""
		s.Before = &before
	})
}

// SettleTokens forgets the old tokens: they are good for nothing any more.
func (k *Keys) SettleTokens() error {
	return k.update(func(s *Secrets) {
		before := s.before()
		s.Before = &Secrets{ConsulGossip: before.ConsulGossip, NomadGossip: before.NomadGossip}
	})
}

// update changes the secrets as they are on disk now.
func (k *Keys) update(change func(*Secrets)) error {
	unlock, err := lock(k.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := Load(k.Dir)
	if err != nil {
		return err
	}
	change(&now.Secrets)
	if b := now.Secrets.before(); b.ConsulGossip == "" && b.ConsulManagement == "" {
		now.Secrets.Before = nil
	}
	if err := now.writeSecrets(now.Secrets); err != nil {
		return err
	}
	k.Secrets = now.Secrets
	return nil
}
