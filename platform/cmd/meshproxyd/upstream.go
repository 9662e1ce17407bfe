package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"
)

// upstream is the server behind the proxy.
type upstream struct {
	network string // unix or tcp
	address string
}

// parseUpstream reads unix:/path, or host:port with a loopback address: what
// another machine can reach past the mesh needs no mesh proxy.
func parseUpstream(text string) (*upstream, error) {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%q is not an absolute path; use for example unix:/run/postgres/.s.PGSQL.5432", text)
		}
		return &upstream{network: "unix", address: filepath.Clean(path)}, nil
	}
	host, _, err := net.SplitHostPort(text)
	if err != nil {
		return nil, fmt.Errorf("%q is neither unix:/path nor host:port", text)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("%q is not on loopback; use 127.0.0.1:PORT, or a socket with unix:/path", text)
	}
	return &upstream{network: "tcp", address: text}, nil
}

func (u *upstream) dial(ctx context.Context) (halfCloser, error) {
	var conn net.Conn
	var err error
	if u.network == "unix" {
		conn, err = dialUnix(ctx, u.address)
	} else {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, u.network, u.address)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s:%s: %w", u.network, u.address, err)
	}
	return halfClosing(conn, nil)
}

// dialWithin tries until the upstream accepts, for at most wait.
func (u *upstream) dialWithin(ctx context.Context, wait time.Duration) (halfCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	last := errors.New("no time to connect")
	for {
		conn, err := u.dial(ctx)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return nil, last
		case <-retry.C:
		}
	}
}

// check reports whether the upstream accepts connections. Postgres keeps
// silent about a connection that sends nothing.
func (u *upstream) check(ctx context.Context) error {
	conn, err := u.dial(ctx)
	if err != nil {
		return err
	}
	return conn.Close()
}
