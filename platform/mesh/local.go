package mesh

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// local is a mesh that others do the work of, or nobody: plaintext on loopback,
// interceptors that let everything pass.
type local struct {
	// target is what gRPC dials for a service.
	target func(service string) (string, []grpc.DialOption, error)
	dial   func(ctx context.Context, service, port, name string) (net.Conn, error)
	close  func()
}

func (l *local) ServerCredentials() credentials.TransportCredentials {
	return loopbackCredentials{insecure.NewCredentials()}
}

func (l *local) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return handler(ctx, req)
	}
}

func (l *local) StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		return handler(srv, s)
	}
}

func (l *local) NewClient(service string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	target, own, err := l.target(service)
	if err != nil {
		return nil, fmt.Errorf("mesh: make a client for %s: %w", service, err)
	}
	return newClient(target, loopbackCredentials{insecure.NewCredentials()}, own, opts)
}

func (l *local) DialContext(ctx context.Context, service string) (net.Conn, error) {
	return l.dial(ctx, service, "", "")
}

func (l *local) DialPort(ctx context.Context, service, port string) (net.Conn, error) {
	return l.dial(ctx, service, port, "")
}

func (l *local) DialInstance(ctx context.Context, service, port, name string) (net.Conn, error) {
	return l.dial(ctx, service, port, name)
}

func (l *local) Listener(inner net.Listener) net.Listener { return loopbackListener{inner} }

func (l *local) Ready(context.Context) error { return nil }

func (l *local) Close() error {
	l.close()
	return nil
}

func (l *local) connect(ctx context.Context, address string) (net.Conn, error) {
	if err := checkLoopbackAddress(address); err != nil {
		return nil, err
	}
	dialer := net.Dialer{KeepAliveConfig: DefaultDialSettings().keepAlive()}
	return dialer.DialContext(ctx, "tcp", address)
}

// checkLoopbackAddress refuses host:port whose host is not this machine alone.
// Names are refused too: what they mean can change.
func checkLoopbackAddress(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("address %q is not a loopback address, and this mesh mode speaks plaintext", address)
	}
	return nil
}

// checkLoopback refuses a connection that leaves this machine.
func checkLoopback(conn net.Conn) error {
	for _, address := range []net.Addr{conn.LocalAddr(), conn.RemoteAddr()} {
		switch a := address.(type) {
		case *net.UnixAddr:
		case *net.TCPAddr:
			if !a.IP.IsLoopback() {
				return fmt.Errorf("mesh: refused plaintext with %s: not a loopback address", a)
			}
		default:
			return fmt.Errorf("mesh: refused plaintext over %s", address.Network())
		}
	}
	return nil
}

// loopbackCredentials are plaintext that does not leave the machine.
type loopbackCredentials struct {
	credentials.TransportCredentials
}

func (c loopbackCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := checkLoopback(raw); err != nil {
		return nil, nil, err
	}
	return c.TransportCredentials.ServerHandshake(raw)
}

func (c loopbackCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := checkLoopback(raw); err != nil {
		return nil, nil, err
	}
	return c.TransportCredentials.ClientHandshake(ctx, authority, raw)
}

func (c loopbackCredentials) Clone() credentials.TransportCredentials {
	return loopbackCredentials{c.TransportCredentials.Clone()}
}

// loopbackListener closes connections from elsewhere before anyone sees them.
type loopbackListener struct {
	net.Listener
}

func (l loopbackListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if err := checkLoopback(conn); err == nil {
			return conn, nil
		}
		conn.Close()
	}
}
