package mesh

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"strings"

	"google.golang.org/grpc/credentials"
)

// ParseIdentity reads a SPIFFE URI as Consul Connect writes it for a service:
// spiffe://<trust domain>/ns/default/dc/<datacenter>/svc/<service>. Every other
// namespace, an admin partition, and the identities of agents, servers and
// gateways are errors: nothing here could tell them apart from a service's.
func ParseIdentity(uri *url.URL) (Identity, error) {
	switch {
	case uri.Scheme != "spiffe":
		return Identity{}, fmt.Errorf("identity %q: the scheme is not spiffe", uri)
	case uri.Host == "" || uri.Port() != "" || uri.User != nil || strings.ContainsAny(uri.Host, ":%"):
		return Identity{}, fmt.Errorf("identity %q: the trust domain is not a plain name", uri)
	case uri.RawQuery != "" || uri.ForceQuery || uri.Fragment != "" || uri.Opaque != "":
		return Identity{}, fmt.Errorf("identity %q: it has more than a trust domain and a path", uri)
	}
	parts := strings.Split(uri.EscapedPath(), "/")
	if len(parts) != 7 || parts[0] != "" || parts[1] != "ns" || parts[3] != "dc" || parts[5] != "svc" {
		return Identity{}, fmt.Errorf("identity %q: the path is not /ns/<namespace>/dc/<datacenter>/svc/<service>", uri)
	}
	var names [3]string
	for i, escaped := range []string{parts[2], parts[4], parts[6]} {
		name, err := url.PathUnescape(escaped)
		if err != nil {
			return Identity{}, fmt.Errorf("identity %q: %w", uri, err)
		}
		if name == "" || strings.ContainsFunc(name, notInName) {
			return Identity{}, fmt.Errorf("identity %q: a name in the path is empty or has a character that names do not have", uri)
		}
		names[i] = name
	}
	if names[0] != "default" {
		return Identity{}, fmt.Errorf("identity %q: the namespace is not default", uri)
	}
	return Identity{TrustDomain: strings.ToLower(uri.Host), Datacenter: names[1], Service: names[2]}, nil
}

func notInName(r rune) bool { return r == '/' || r < ' ' || r == 0x7f }

// URI is the identity as its certificate holds it; ParseIdentity reverses it.
func (id Identity) URI() *url.URL {
	return &url.URL{
		Scheme:  "spiffe",
		Host:    id.TrustDomain,
		Path:    "/ns/default/dc/" + id.Datacenter + "/svc/" + id.Service,
		RawPath: "/ns/default/dc/" + url.PathEscape(id.Datacenter) + "/svc/" + url.PathEscape(id.Service),
	}
}

// String is the identity's URI.
func (id Identity) String() string { return id.URI().String() }

// certificateIdentity is the one identity a certificate names. A certificate
// with several could be taken for any of them, so it is refused.
func certificateIdentity(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 {
		return Identity{}, fmt.Errorf("the certificate names %d URIs, not one", len(cert.URIs))
	}
	return ParseIdentity(cert.URIs[0])
}

// PeerFromAuthInfo is the identity of the other end of a gRPC connection, as a
// client gets it with grpc.Peer; absent unless a native mesh made the connection.
func PeerFromAuthInfo(info credentials.AuthInfo) (Identity, bool) {
	p, ok := info.(*peerInfo)
	if !ok {
		return Identity{}, false
	}
	return p.identity, true
}

// PeerFromConn is the identity of the other end of a connection that Listener
// accepted, or DialContext or DialPort opened; absent unless a native mesh made it.
func PeerFromConn(conn net.Conn) (Identity, bool) {
	if counted, ok := conn.(*countedConn); ok {
		conn = counted.Conn
	}
	c, ok := conn.(*peerConn)
	if !ok {
		return Identity{}, false
	}
	return c.peer.identity, true
}
