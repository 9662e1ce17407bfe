package environment

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/marquee-ads/marquee/platform/vms/box"
)

// dialInBox connects in the network of a box.
func dialInBox(ctx context.Context, folder string, dialer *net.Dialer, network, address string) (net.Conn, error) {
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("the machines are in the box %s: run this inside: marquee vms shell", folder)
	}
	b, err := box.New(folder)
	if err != nil {
		return nil, err
	}
	networkFile, err := b.NetworkFile()
	if err != nil {
		return nil, fmt.Errorf("%w: make vms starts it", err)
	}
	var conn net.Conn
	err = box.Within(networkFile, func() error {
		var err error
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
