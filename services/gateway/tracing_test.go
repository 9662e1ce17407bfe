package gateway_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/services/gateway"
)

// The caller's trace goes on through a span of the gateway, at both doors.
func TestTraceContinuesThroughTheGateway(t *testing.T) {
	const traceID, callerSpan = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	traceparent := "00-" + traceID + "-" + callerSpan + "-01"
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	seen := make(chan string, 1)
	backend := startEcho(t, func(e *echo) {
		e.onEcho = func(ctx context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			seen <- md.Get("traceparent")[0]
			if r.GetText() == "broken" {
				return nil, status.Error(grpccodes.Internal, "it broke")
			}
			return &echov1.EchoResponse{}, nil
		}
	})
	gw := startWith(t, backend, func(s *gateway.Surroundings) { s.Tracing = provider })

	for door, call := range map[string]func(){
		"http": func() {
			response, _ := gw.do(t, "GET", "/v1/echo/x", "", "Traceparent", traceparent)
			require.Equal(t, http.StatusOK, response.StatusCode)
		},
		"grpc": func() {
			_, err := gw.client.Echo(metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent), &echov1.EchoRequest{})
			require.NoError(t, err)
		},
	} {
		t.Run(door, func(t *testing.T) {
			recorder.Reset()
			call()
			var spans []sdktrace.ReadOnlySpan
			soon(t, "the span has ended", func() bool { spans = recorder.Ended(); return len(spans) == 1 })
			span := spans[0]
			require.Equal(t, echoPath, span.Name())
			require.Equal(t, trace.SpanKindServer, span.SpanKind())
			require.Equal(t, callerSpan, span.Parent().SpanID().String())
			require.Equal(t, traceID, span.SpanContext().TraceID().String())
			require.Contains(t, span.Attributes(), attribute.String("marquee.door", door))
			require.Equal(t, "00-"+traceID+"-"+span.SpanContext().SpanID().String()+"-01", receive(t, seen), "what the service is told")
			require.Equal(t, codes.Unset, span.Status().Code)
		})
	}
	t.Run("Failure", func(t *testing.T) {
		recorder.Reset()
		_, err := gw.client.Echo(t.Context(), &echov1.EchoRequest{Text: "broken"})
		require.Error(t, err)
		require.NotEmpty(t, receive(t, seen), "a trace of its own, without a caller's")
		soon(t, "the span has ended", func() bool { return len(recorder.Ended()) == 1 })
		require.Equal(t, sdktrace.Status{Code: codes.Error, Description: "INTERNAL"}, recorder.Ended()[0].Status())
	})
}
