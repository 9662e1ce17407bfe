package mesh

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const testDomain = "11111111-2222-3333-4444-555555555555.consul"

// authority is a certificate authority of a test, for certificates that Consul
// does not issue.
type authority struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	a := &authority{tb: tb}
	a.cert, a.key = a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	return a
}

func (a *authority) issue(template *x509.Certificate, by *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.tb, err)
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	require.NoError(a.tb, err)
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	require.NoError(a.tb, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.tb, err)
	return cert, key
}

// leaf issues a certificate; edit changes what a service of testDomain would get.
func (a *authority) leaf(service string, edit func(*x509.Certificate)) *leaf {
	a.tb.Helper()
	template := &x509.Certificate{
		URIs:        []*url.URL{Identity{testDomain, "dc1", service}.URI()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature,
	}
	if edit != nil {
		edit(template)
	}
	cert, key := a.issue(template, a)
	return &leaf{
		certificate: &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert},
		notBefore:   cert.NotBefore, notAfter: cert.NotAfter,
	}
}

func (a *authority) trust(more ...*authority) *trust {
	t := &trust{domain: testDomain, roots: x509.NewCertPool()}
	for _, one := range append(more, a) {
		t.roots.AddCert(one.cert)
	}
	return t
}

func identityOf(own *leaf, trusted *trust) *certificates {
	c := &certificates{now: time.Now}
	c.leaf.Store(own)
	c.trust.Store(trusted)
	return c
}

// shake makes a connection over loopback TCP and returns both ends' errors.
func shake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		raw, err := listener.Accept()
		if err != nil {
			done <- err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		err = conn.HandshakeContext(ctx)
		if err == nil {
			_, err = conn.Write([]byte("x"))
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer raw.Close()
	require.NoError(t, raw.SetDeadline(time.Now().Add(10*time.Second)))
	conn := tls.Client(raw, client)
	clientErr = conn.HandshakeContext(ctx)
	if clientErr == nil {
		// In TLS 1.3 a client learns here that it was refused.
		_, clientErr = conn.Read(make([]byte, 1))
	}
	raw.Close()
	return <-done, clientErr
}

func TestHandshake(t *testing.T) {
	ours, foreign := newAuthority(t), newAuthority(t)
	plain := func(service string) *leaf { return ours.leaf(service, nil) }
	uri := func(uris ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs = nil
			for _, text := range uris {
				u, err := url.Parse(text)
				require.NoError(t, err)
				c.URIs = append(c.URIs, u)
			}
		}
	}
	const account = "spiffe://" + testDomain + "/ns/default/dc/dc1/svc/account"
	for name, c := range map[string]struct {
		server, client *leaf
		serverTrust    *trust
		text           string // what the refusing side's error contains
		clientRefuses  bool
		serverRefuses  bool
	}{
		"OK":                     {},
		"OKServerTrustsOldToo":   {client: foreign.leaf("gateway", nil), serverTrust: ours.trust(foreign)},
		"ErrServerOfOtherName":   {server: plain("echo"), clientRefuses: true, text: `dialled service "account" and "echo" answered`},
		"ErrServerOfOtherRoot":   {server: foreign.leaf("account", nil), clientRefuses: true, text: "unknown authority"},
		"ErrServerOfOtherDomain": {server: ours.leaf("account", uri("spiffe://other.consul/ns/default/dc/dc1/svc/account")), clientRefuses: true, text: "trust domain"},
		"ErrServerWithTwoURIs":   {server: ours.leaf("account", uri(account, account+"2")), clientRefuses: true, text: "2 URIs"},
		"ErrServerExpired": {server: ours.leaf("account", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}), serverRefuses: true, text: "our certificate expired"},
		"ErrServerForClientsOnly": {server: ours.leaf("account", func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}), clientRefuses: true, text: "key usage"},
		"ErrClientOfOtherRoot":   {client: foreign.leaf("gateway", nil), serverRefuses: true, text: "unknown authority"},
		"ErrClientOfOtherDomain": {client: ours.leaf("gateway", uri("spiffe://other.consul/ns/default/dc/dc1/svc/gateway")), serverRefuses: true, text: "trust domain"},
		"ErrClientWithTwoURIs":   {client: ours.leaf("gateway", uri(account, account+"2")), serverRefuses: true, text: "2 URIs"},
		"ErrClientWithoutURI":    {client: ours.leaf("gateway", uri()), serverRefuses: true, text: "0 URIs"},
		"ErrClientIsAgent":       {client: ours.leaf("gateway", uri("spiffe://"+testDomain+"/agent/client/dc/dc1/id/x")), serverRefuses: true, text: "the path is not"},
		"ErrClientForServersOnly": {client: ours.leaf("gateway", func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), serverRefuses: true, text: "key usage"},
		"ErrServerHasNoRoots": {serverTrust: &trust{domain: testDomain, roots: x509.NewCertPool()}, serverRefuses: true, text: "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			server, client := identityOf(plain("account"), ours.trust()), identityOf(plain("gateway"), ours.trust())
			if c.server != nil {
				server.leaf.Store(c.server)
			}
			if c.client != nil {
				client.leaf.Store(c.client)
			}
			if c.serverTrust != nil {
				server.trust.Store(c.serverTrust)
			}
			serverErr, clientErr := shake(t, server.serverConfig(), client.clientConfig("account"))
			switch {
			case c.clientRefuses:
				require.ErrorContains(t, clientErr, c.text)
				require.Error(t, serverErr)
			case c.serverRefuses:
				require.ErrorContains(t, serverErr, c.text)
				require.Error(t, clientErr)
			default:
				require.NoError(t, serverErr)
				require.NoError(t, clientErr)
			}
		})
	}
}

func TestHandshakeWithStrangers(t *testing.T) {
	ours := newAuthority(t)
	server := identityOf(ours.leaf("account", nil), ours.trust())

	t.Run("NoCertificate", func(t *testing.T) {
		serverErr, clientErr := shake(t, server.serverConfig(), &tls.Config{InsecureSkipVerify: true})
		require.ErrorContains(t, serverErr, "didn't provide a certificate")
		require.Error(t, clientErr)
	})
	t.Run("TLS12", func(t *testing.T) {
		client := identityOf(ours.leaf("gateway", nil), ours.trust()).clientConfig("account")
		client.MinVersion, client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		serverErr, clientErr := shake(t, server.serverConfig(), client)
		require.Error(t, serverErr)
		require.Error(t, clientErr)
	})
}

// TestRootRemoved: a client that was welcome is refused as soon as its root is
// no longer published, even when it tries to resume an earlier session.
func TestRootRemoved(t *testing.T) {
	ours, old := newAuthority(t), newAuthority(t)
	server := identityOf(ours.leaf("account", nil), ours.trust(old))
	client := identityOf(old.leaf("gateway", nil), ours.trust(old)).clientConfig("account")
	client.ClientSessionCache = tls.NewLRUClientSessionCache(10)
	config := server.serverConfig()
	for range 2 {
		serverErr, clientErr := shake(t, config, client)
		require.NoError(t, serverErr)
		require.NoError(t, clientErr)
	}
	server.trust.Store(ours.trust())
	serverErr, clientErr := shake(t, config, client)
	require.ErrorContains(t, serverErr, "unknown authority")
	require.Error(t, clientErr)
}

// TestLeafRotates: a server's and a client's configuration hand out the newest
// certificate without being made again.
func TestLeafRotates(t *testing.T) {
	ours := newAuthority(t)
	server, client := identityOf(ours.leaf("account", nil), ours.trust()), identityOf(ours.leaf("gateway", nil), ours.trust())
	var seen []*big.Int
	serverConfig, clientConfig := server.serverConfig(), client.clientConfig("account")
	verify := serverConfig.VerifyConnection
	serverConfig.VerifyConnection = func(s tls.ConnectionState) error {
		seen = append(seen, s.PeerCertificates[0].SerialNumber)
		return verify(s)
	}
	for range 2 {
		serverErr, clientErr := shake(t, serverConfig, clientConfig)
		require.NoError(t, serverErr)
		require.NoError(t, clientErr)
		client.leaf.Store(ours.leaf("gateway", nil))
	}
	require.Len(t, seen, 2)
	require.NotEqual(t, seen[0], seen[1])
}
