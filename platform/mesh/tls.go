package mesh

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"google.golang.org/grpc/credentials"
)

// leaf is the certificate this process proves itself with.
type leaf struct {
	certificate *tls.Certificate
	serial      string
	notBefore   time.Time
	notAfter    time.Time
}

// trust is what peers are verified against: all roots that Consul publishes. In
// a rotation these are the old and the new one, until no leaf of the old is left.
type trust struct {
	domain string
	roots  *x509.CertPool
}

// certificates are the newest leaf and roots. Every handshake reads them anew,
// so a rotation needs no new listener and no new connection.
type certificates struct {
	now   func() time.Time
	leaf  atomic.Pointer[leaf]
	trust atomic.Pointer[trust]
}

func newLeaf(from *consulapi.LeafCert, service string) (*leaf, error) {
	cert, err := tls.X509KeyPair([]byte(from.CertPEM), []byte(from.PrivateKeyPEM))
	if err != nil {
		return nil, fmt.Errorf("read the leaf certificate: %w", err)
	}
	id, err := certificateIdentity(cert.Leaf)
	if err != nil {
		return nil, fmt.Errorf("read the leaf certificate: %w", err)
	}
	if id.Service != service {
		return nil, fmt.Errorf("the agent returned a leaf certificate of service %q, not %q", id.Service, service)
	}
	return &leaf{
		certificate: &cert,
		serial:      from.SerialNumber,
		notBefore:   cert.Leaf.NotBefore,
		notAfter:    cert.Leaf.NotAfter,
	}, nil
}

func newTrust(from *consulapi.CARootList) (*trust, error) {
	if from.TrustDomain == "" || len(from.Roots) == 0 {
		return nil, errors.New("the agent returned no trust domain or no roots")
	}
	pool := x509.NewCertPool()
	for _, root := range from.Roots {
		if !pool.AppendCertsFromPEM([]byte(root.RootCertPEM)) {
			return nil, fmt.Errorf("read root %s: no certificate in it", root.ID)
		}
	}
	return &trust{domain: strings.ToLower(from.TrustDomain), roots: pool}, nil
}

// own is the certificate for a handshake that happens now. An expired one is
// not sent: the peer would refuse it with a text that blames the wrong side.
func (c *certificates) own() (*tls.Certificate, error) {
	l := c.leaf.Load()
	if l == nil {
		return nil, errors.New("mesh: no certificate has arrived from the Consul agent yet")
	}
	if now := c.now(); now.After(l.notAfter) {
		return nil, fmt.Errorf("mesh: our certificate expired at %s and the Consul agent has sent no new one",
			l.notAfter.Format(time.RFC3339))
	}
	return l.certificate, nil
}

// verify proves who the peer is: its certificate chains to a root that Consul
// publishes now, is made for this use, and names one service of our trust domain.
func (c *certificates) verify(state tls.ConnectionState, usage x509.ExtKeyUsage) (Identity, error) {
	t := c.trust.Load()
	if t == nil {
		return Identity{}, errors.New("mesh: no roots have arrived from the Consul agent yet")
	}
	if len(state.PeerCertificates) == 0 {
		return Identity{}, errors.New("mesh: the peer sent no certificate")
	}
	peer, intermediates := state.PeerCertificates[0], x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		intermediates.AddCert(cert)
	}
	_, err := peer.Verify(x509.VerifyOptions{
		Roots:         t.roots,
		Intermediates: intermediates,
		CurrentTime:   c.now(),
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return Identity{}, fmt.Errorf("mesh: verify the peer's certificate: %w", err)
	}
	id, err := certificateIdentity(peer)
	if err != nil {
		return Identity{}, fmt.Errorf("mesh: %w", err)
	}
	if id.TrustDomain != t.domain {
		return Identity{}, fmt.Errorf("mesh: the peer is of trust domain %q, we are of %q", id.TrustDomain, t.domain)
	}
	return id, nil
}

// serverConfig asks every client for a certificate. Sessions are not resumed:
// mesh connections are long, so it would save little, and each handshake is
// then a full proof against the roots of that moment.
func (c *certificates) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.own() },
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := c.verify(state, x509.ExtKeyUsageClientAuth)
			return err
		},
	}
}

// streamConfig is serverConfig for connections of any protocol. A gRPC client
// insists on being told that HTTP/2 is spoken, and whoever listens here for one
// speaks it; clients of other protocols do not ask.
func (c *certificates) streamConfig() *tls.Config {
	plain, http2 := c.serverConfig(), c.serverConfig()
	http2.NextProtos = []string{protocolHTTP2}
	plain.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, protocolHTTP2) {
			return http2, nil
		}
		return nil, nil // plain itself
	}
	return plain
}

// protocolHTTP2 is its name in TLS (RFC 9113, 3.2).
const protocolHTTP2 = "h2"

// clientConfig talks to instances of one service alone. The standard host name
// check does not apply, as Connect certificates name services and not hosts:
// VerifyConnection does its work.
func (c *certificates) clientConfig(service string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         service,
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.own()
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := c.verify(state, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if id.Service != service {
				return fmt.Errorf("mesh: dialled service %q and %q answered", service, id.Service)
			}
			return nil
		},
	}
}

// peerInfo is who is at the other end of a connection, with the intention that
// applies to it, looked up once for each version of the intentions.
type peerInfo struct {
	credentials.TLSInfo
	identity Identity
	// boxed is identity as an interface value, made once and not on each call.
	boxed  any
	ruling atomic.Pointer[ruling]
}

type ruling struct {
	policy *policy
	rule   *rule
}

func newPeerInfo(info credentials.TLSInfo) (*peerInfo, error) {
	if len(info.State.PeerCertificates) == 0 {
		return nil, errors.New("mesh: the peer sent no certificate")
	}
	id, err := certificateIdentity(info.State.PeerCertificates[0])
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	return &peerInfo{TLSInfo: info, identity: id, boxed: id}, nil
}

func (p *peerInfo) context(ctx context.Context) context.Context {
	return context.WithValue(ctx, identityKey{}, p.boxed)
}

// rule is what the policy says about this peer.
func (p *peerInfo) rule(of *policy) *rule {
	if r := p.ruling.Load(); r != nil && r.policy == of {
		return r.rule
	}
	r := of.ruleFor(p.identity.Service)
	p.ruling.Store(&ruling{policy: of, rule: r})
	return r
}

// meshCredentials are gRPC's TLS with our configuration, and an AuthInfo that
// carries the peer's identity.
type meshCredentials struct {
	credentials.TransportCredentials
	// handshakes are a server's.
	handshakes *handshakes
}

func (c *meshCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	defer c.handshakes.enter(raw)()
	return identified(c.TransportCredentials.ServerHandshake(raw))
}

func (c *meshCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return identified(c.TransportCredentials.ClientHandshake(ctx, authority, raw))
}

func (c *meshCredentials) Clone() credentials.TransportCredentials {
	return &meshCredentials{c.TransportCredentials.Clone(), c.handshakes}
}

func identified(conn net.Conn, info credentials.AuthInfo, err error) (net.Conn, credentials.AuthInfo, error) {
	if err != nil {
		return nil, nil, err
	}
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok {
		conn.Close()
		return nil, nil, fmt.Errorf("mesh: the handshake returned %T, not TLSInfo", info)
	}
	p, err := newPeerInfo(tlsInfo)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, p, nil
}
