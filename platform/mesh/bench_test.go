package mesh

import (
	"context"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// BenchmarkInterceptor is what the mesh adds to a unary call beside TLS. The
// one allocation is the context that carries the peer.
func BenchmarkInterceptor(b *testing.B) {
	const method = "/marquee.account.v1.AccountService/GetAccount"
	for name, intentions := range map[string][]*consulapi.Intention{
		"Allow": {l4("echo", 9, allowed), l4("gateway", 9, allowed)},
		"Path":  {l7("gateway", 9, permit(allowed, consulapi.IntentionHTTPPermission{PathPrefix: "/marquee.account.v1."}))},
		"Header": {l7("gateway", 9, permit(allowed, consulapi.IntentionHTTPPermission{
			Header: []headerPermission{{Name: "x-tenant", Exact: "acme"}},
		}))},
	} {
		b.Run(name, func(b *testing.B) {
			n := &native{cfg: NativeConfig{Service: "account"}}
			p, err := newPolicy(intentions)
			require.NoError(b, err)
			n.policy.Store(p)
			id := Identity{TrustDomain: testDomain, Datacenter: "dc1", Service: "gateway"}
			ctx := peer.NewContext(context.Background(), &peer.Peer{AuthInfo: &peerInfo{identity: id, boxed: id}})
			ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("x-tenant", "acme"))
			intercept, info := n.UnaryServerInterceptor(), &grpc.UnaryServerInfo{FullMethod: method}
			handler := func(context.Context, any) (any, error) { return nil, nil }
			b.ReportAllocs()
			for b.Loop() {
				if _, err := intercept(ctx, nil, info, handler); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
