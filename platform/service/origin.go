package service

import (
	"context"
	"net/netip"

	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/platform/mesh"
)

const (
	// forwardedForKey is the metadata key in which the gateway says which address
	// it was called from. It removes what clients send under that name.
	forwardedForKey = "x-forwarded-for"
	// gatewayService is the gateway's name in the mesh.
	gatewayService = "gateway"
)

// ClientAddress is the address of the client on whose behalf a call is made, as
// the gateway saw it, or empty. What any other service says is not believed.
// Where the mesh does not say who calls (behind Envoy sidecars, plaintext), it
// let nobody through who has no edge, and what the call says is taken.
//
// The gateway trusts no proxy: behind one, all clients have the proxy's address.
func ClientAddress(ctx context.Context) string {
	if peer, known := mesh.PeerFromContext(ctx); known && peer.Service != gatewayService {
		return ""
	}
	values := metadata.ValueFromIncomingContext(ctx, forwardedForKey)
	if len(values) != 1 {
		return ""
	}
	address, err := netip.ParseAddr(values[0])
	if err != nil {
		return ""
	}
	return address.Unmap().WithZone("").String()
}
