//go:build !linux

package main

import (
	"context"
	"net"
)

// dialUnix connects to a socket; paths longer than a socket address need Linux.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", path)
}
