package scenario

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/platform/stack"
)

// Doors are clients of all gateways.
type Doors struct {
	REST *load.REST
	GRPC *grpc.ClientConn
}

// OpenDoors makes clients of these gateways for as long as the test lasts. They
// know their addresses, and are told nothing of what happens to them.
func OpenDoors(t testing.TB, gateways []stack.Gateway) Doors {
	t.Helper()
	bases, addresses := Addresses(gateways)
	conn, err := load.DialGRPC(addresses...)
	require.NoError(t, err)
	d := Doors{REST: load.NewREST(bases...), GRPC: conn}
	t.Cleanup(func() {
		d.REST.Close()
		d.GRPC.Close()
	})
	return d
}

// Accounts makes load through the doors.
func (d Doors) Accounts() *Accounts { return NewAccounts(d.REST, d.GRPC) }

// Addresses are what load's clients of gateways want: URLs, and host:port.
func Addresses(gateways []stack.Gateway) (bases, addresses []string) {
	for _, g := range gateways {
		bases, addresses = append(bases, "http://"+g.HTTP), append(addresses, g.GRPC)
	}
	return bases, addresses
}
