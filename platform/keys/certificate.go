package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/files"
)

// How long certificates are good for. Renewing those of the machines is a
// procedure that is done while all runs; another CA is one, too, but a longer one.
const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	nodeLifetime = 365 * 24 * time.Hour
	// Clocks of machines that were just made may be behind.
	clockSlack = time.Hour
)

// Certificate is one of a folder.
type Certificate struct {
	Name     string    // the machine's, "operator" or "ca"
	File     string    //
	Names    []string  // host names and addresses that it is good for
	NotAfter time.Time //
}

// pair is a certificate and its key: where they are and what they say.
type pair struct {
	name                     string
	certificateFile, keyFile string // below the folder
	dns                      []string
	addresses                []net.IP
	usage                    []x509.ExtKeyUsage
}

func operatorPair() pair {
	return pair{
		name: OperatorName, certificateFile: "operator.pem", keyFile: "operator-key.pem",
		usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

func nodePair(n Node) pair {
	p := pair{
		name:            n.Name,
		certificateFile: filepath.Join("nodes", n.Name+".pem"), keyFile: filepath.Join("nodes", n.Name+"-key.pem"),
		dns:       []string{n.Name, "localhost"},
		addresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		usage:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	switch n.Role {
	case Server:
		p.dns = append(p.dns, ConsulServerName, NomadServerName)
	case Client:
		p.dns = append(p.dns, "client.dc1.consul", "client.global.nomad")
	}
	if ip := net.ParseIP(n.Address); ip != nil {
		p.addresses = append(p.addresses, ip)
	}
	return p
}

// authority signs. While the CA is rotated there is another one beside it, whose
// certificates are good, too.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	trusted     []*x509.Certificate // all that machines trust, this one among them
}

// The files of the CA. Which of the trusted certificates signs is told by the
// key; that of the next CA waits until every machine trusts its certificate.
const (
	caFile      = "ca.pem"
	caKeyFile   = "ca-key.pem"
	nextKeyFile = "ca-next-key.pem"
)

// errStrangers says that a key is that of no certificate there.
var errStrangers = errors.New("certificate and key do not belong together")

func (k *Keys) ensureCA(now time.Time) (*authority, error) {
	_, err := k.read(caFile)
	if errors.Is(err, ErrMissing) {
		return k.newCA(now)
	}
	if err != nil {
		return nil, err
	}
	return k.authority(caKeyFile)
}

// authority is the CA whose key is in a file.
func (k *Keys) authority(keyFile string) (*authority, error) {
	text, err := k.read(caFile)
	if err != nil {
		return nil, err
	}
	trusted, err := parseCertificates(k.CAFile(), text)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(k.Dir, keyFile)
	keyText, err := k.read(keyFile)
	if errors.Is(err, ErrMissing) {
		return nil, fmt.Errorf("%s is missing: bring it back from where it is kept to sign certificates with it: %w", path, ErrMissing)
	}
	if err != nil {
		return nil, err
	}
	key, err := parseKey(path, keyText)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(trusted, func(c *x509.Certificate) bool { return key.PublicKey.Equal(c.PublicKey) })
	if at < 0 {
		return nil, fmt.Errorf("%s and %s: %w: bring the one that does back", k.CAFile(), keyFile, errStrangers)
	}
	return &authority{certificate: trusted[at], key: key, trusted: trusted}, nil
}

func (k *Keys) newCA(now time.Time) (*authority, error) {
	if _, err := k.read("secrets.json"); err == nil {
		return nil, fmt.Errorf("%s is missing where there are other keys: bring it back, or make all keys anew in an empty folder", k.CAFile())
	}
	// A key without its certificate is one that an interrupted run left.
	der, key, err := makeCA(now)
	if err != nil {
		return nil, err
	}
	if err := k.writePair(caFile, caKeyFile, der, key); err != nil {
		return nil, err
	}
	return k.authority(caKeyFile)
}

func makeCA(now time.Time) (der []byte, key *ecdsa.PrivateKey, err error) {
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Marquee agents CA", Organization: []string{"Marquee"}},
		NotBefore: now.Add(-clockSlack), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("make the agents' CA: %w", err)
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err != nil {
		return nil, nil, fmt.Errorf("make the agents' CA: %w", err)
	}
	return der, key, nil
}

// ensurePair makes a certificate where there is none.
func (k *Keys) ensurePair(ca *authority, p pair, now time.Time) error {
	certificate, err := k.read(p.certificateFile)
	switch {
	case errors.Is(err, ErrMissing):
		return k.newPair(ca, p, now)
	case err != nil:
		return err
	}
	path := filepath.Join(k.Dir, p.certificateFile)
	have, err := parseCertificate(path, certificate)
	if err != nil {
		return err
	}
	if !ca.signed(have) {
		return fmt.Errorf("%s was not signed by this environment's CA: remove it, and it is made again", path)
	}
	if missing := slices.DeleteFunc(slices.Clone(p.dns), func(name string) bool { return slices.Contains(have.DNSNames, name) }); len(missing) > 0 {
		return fmt.Errorf("%s is not good for %s: has the machine another role now? Remove it, and it is made again", path, strings.Join(missing, ", "))
	}
	_, err = k.read(p.keyFile)
	if errors.Is(err, ErrMissing) {
		return fmt.Errorf("%s is there and its key is not: remove it, and both are made again", path)
	}
	return err
}

// signed says whether one that is trusted signed a certificate.
func (a *authority) signed(c *x509.Certificate) bool {
	return slices.ContainsFunc(a.trusted, func(ca *x509.Certificate) bool { return c.CheckSignatureFrom(ca) == nil })
}

func (k *Keys) newPair(ca *authority, p pair, now time.Time) error {
	end := now.Add(nodeLifetime)
	if now.After(ca.certificate.NotAfter) {
		return fmt.Errorf("the agents' CA has expired on %s: marquee keys rotate ca", ca.certificate.NotAfter.Format(time.DateOnly))
	}
	if end.After(ca.certificate.NotAfter) {
		end = ca.certificate.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: p.name, Organization: []string{"Marquee"}},
		NotBefore: now.Add(-clockSlack), NotAfter: end,
		DNSNames: p.dns, IPAddresses: p.addresses, ExtKeyUsage: p.usage,
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the certificate of %s: %w", p.name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, key.Public(), ca.key)
	if err != nil {
		return fmt.Errorf("make the certificate of %s: %w", p.name, err)
	}
	return k.writePair(p.certificateFile, p.keyFile, der, key)
}

// writePair writes the key first: a certificate that is there has its key.
func (k *Keys) writePair(certificateFile, keyFile string, der []byte, key *ecdsa.PrivateKey) error {
	if err := k.writeKey(keyFile, key); err != nil {
		return err
	}
	return k.writeCertificates(certificateFile, der)
}

func (k *Keys) writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return files.Replace(filepath.Join(k.Dir, file), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func (k *Keys) writeCertificates(file string, ders ...[]byte) error {
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return files.Replace(filepath.Join(k.Dir, file), text, 0o644)
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func parseCertificate(path string, text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s is no certificate: remove it, and it is made again", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s is no certificate: %w: remove it, and it is made again", path, err)
	}
	return c, nil
}

// parseCertificates is for a file with one or several.
func parseCertificates(path string, text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for len(bytes.TrimSpace(text)) > 0 {
		c, err := parseCertificate(path, text)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
		_, text = pem.Decode(text)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s is empty: bring it back", path)
	}
	return all, nil
}

func parseKey(path string, text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is no private key", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s is no private key: %w", path, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is a %T, and should be an ECDSA key", path, key)
	}
	return ec, nil
}

// Certificates are those of the folder, the CA first. While the CA is rotated
// there are two.
func (k *Keys) Certificates() ([]Certificate, error) {
	paths := []string{caFile, "operator.pem"}
	entries, err := os.ReadDir(filepath.Join(k.Dir, "nodes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the machines' certificates: %w", err)
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".pem") && !strings.HasSuffix(name, "-key.pem") {
			paths = append(paths, filepath.Join("nodes", name))
		}
	}
	var all []Certificate
	for _, file := range paths {
		text, err := k.read(file)
		if err != nil {
			return nil, err
		}
		path := filepath.Join(k.Dir, file)
		parsed, err := parseCertificates(path, text)
		if err != nil {
			return nil, err
		}
		for _, c := range parsed {
			names := slices.Clone(c.DNSNames)
			for _, ip := range c.IPAddresses {
				names = append(names, ip.String())
			}
			all = append(all, Certificate{
				Name: strings.TrimSuffix(filepath.Base(file), ".pem"), File: path, Names: names, NotAfter: c.NotAfter,
			})
		}
	}
	return all, nil
}

// CheckExpiry is an error that names the certificates that have expired, of those
// with these names or, without any, of all.
func (k *Keys) CheckExpiry(now time.Time, names ...string) error {
	all, err := k.Certificates()
	if err != nil {
		return err
	}
	var expired []string
	fix := "marquee keys rotate certificates renews them"
	for _, c := range all {
		if now.After(c.NotAfter) && (len(names) == 0 || slices.Contains(names, c.Name)) {
			expired = append(expired, fmt.Sprintf("%s (on %s)", c.Name, c.NotAfter.Format(time.DateOnly)))
			if c.File == k.CAFile() {
				fix = "marquee keys rotate ca, and docs/operations.md for the rest"
			}
		}
	}
	if len(expired) == 0 {
		return nil
	}
	return fmt.Errorf("expired: the certificate of %s: %s", strings.Join(expired, ", "), fix)
}
