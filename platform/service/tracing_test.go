package service_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// collector keeps the spans that are handed in.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	got chan *collectorpb.ExportTraceServiceRequest
}

func (c *collector) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.got <- r
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func TestTracing(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &collector{got: make(chan *collectorpb.ExportTraceServiceRequest, 10)}
	server := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, c)
	go server.Serve(listener)
	defer server.Stop()

	traced := plaintext()
	traced.TracingEndpoint = listener.Addr().String()
	behind := start(t, traced, service.GRPCOptions{Keys: auth.NoKeys{}}, echo(&stub{}))
	traced.Name, traced.Upstreams = "caller", map[string][]string{"echo": {behind.addresses.Mesh}}
	caller := start(t, traced, service.GRPCOptions{}, nothing)
	conn, err := caller.svc.NewClient("echo")
	require.NoError(t, err)
	defer conn.Close()
	_, err = echov1.NewEchoServiceClient(conn).Echo(callCtx(t), &echov1.EchoRequest{})
	require.NoError(t, err)

	// Stopping hands in what is left.
	require.NoError(t, behind.stop())
	require.NoError(t, caller.stop())
	traces := map[string]string{} // by service
	for len(traces) < 2 {
		select {
		case r := <-c.got:
			for _, resource := range r.GetResourceSpans() {
				span := resource.GetScopeSpans()[0].GetSpans()[0]
				require.Equal(t, "marquee.echo.v1.EchoService/Echo", span.GetName())
				traces[resource.GetResource().GetAttributes()[0].GetValue().String()+span.GetKind().String()] = string(span.GetTraceId())
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("the collector got spans of %d services, not of 2", len(traces))
		}
	}
	var ids []string
	for _, id := range traces {
		ids = append(ids, id)
	}
	require.Equal(t, ids[0], ids[1], "one trace through both services")
}
