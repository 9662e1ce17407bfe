// Package mesh is how a service knows who calls it and proves who it is: mutual
// TLS with Consul Connect certificates, intentions, and the way to the instances
// of another service. A service is written against Mesh and does not know
// whether the process does the work itself (Native) or an Envoy beside it
// (Sidecar).
package mesh

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// Mesh is one service's place in the mesh.
type Mesh interface {
	// ServerCredentials secure a gRPC server. The handshake proves that the
	// peer belongs to the trust domain; whether it may call is decided on each
	// RPC by the interceptors below.
	ServerCredentials() credentials.TransportCredentials

	// UnaryServerInterceptor and StreamServerInterceptor let a call through
	// only while an intention allows its peer, with PERMISSION_DENIED
	// (MESH_DENIED) otherwise, put the peer's Identity into the context, and
	// end open streams when they are no longer allowed.
	UnaryServerInterceptor() grpc.UnaryServerInterceptor
	StreamServerInterceptor() grpc.StreamServerInterceptor

	// NewClient makes a connection to all instances of a service, balanced
	// round robin, that only talks to peers with that service's identity. It
	// does not block (grpc.NewClient).
	NewClient(service string, opts ...grpc.DialOption) (*grpc.ClientConn, error)

	// DialContext opens one plain byte connection to an instance of a service,
	// for protocols that are not gRPC (Postgres): to the one with the fewest of
	// them from here. The connection has CloseWrite. While no instance can be
	// reached it keeps trying, until ctx ends (10 s when it has no deadline);
	// the error is then UNAVAILABLE (MESH_UNREACHABLE).
	DialContext(ctx context.Context, service string) (net.Conn, error)

	// DialPort is DialContext to a further port of the instances: the one whose
	// address they registered under this name (discovery.Instance.Meta), on which
	// they have a Listener. It is not for sidecars, which know one port.
	DialPort(ctx context.Context, service, port string) (net.Conn, error)

	// DialInstance is DialPort to the one instance that has registered this name as
	// InstanceMeta, for servers each of which is somebody of its own. It is not for
	// sidecars, either.
	DialInstance(ctx context.Context, service, port, name string) (net.Conn, error)

	// Listener secures a plain TCP listener: Accept returns connections whose
	// peer is authenticated and allowed, and closes them when it no longer is.
	// They have CloseWrite.
	Listener(inner net.Listener) net.Listener

	// Ready waits until certificates, roots and intentions have arrived.
	Ready(ctx context.Context) error

	// Close stops the watches. Connections made before live on.
	Close() error
}

// InstanceMeta is what an instance that is dialled by its name registers that as.
const InstanceMeta = "instance"

// Identity is a service as its certificate names it (SPIFFE).
type Identity struct {
	TrustDomain string // host part of the SPIFFE URI, lower case
	Datacenter  string
	Service     string // the Consul service name, for example "account"
}

type identityKey struct{}

// PeerFromContext is the service that made the call, as the mesh proved it.
// It is absent in sidecar mode, where Envoy has checked it, and in plaintext.
func PeerFromContext(ctx context.Context) (Identity, bool) {
	id, ok := ctx.Value(identityKey{}).(Identity)
	return id, ok
}
