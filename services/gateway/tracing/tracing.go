// Package tracing is the stage that continues the caller's trace with a span of
// the gateway's own, or begins one.
package tracing

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// Stage opens a server span for every call, as the child of the span that the
// caller's traceparent names. The service is told the gateway's span instead, or
// that of the attempt where the connection to the service has spans of its own.
func Stage(provider trace.TracerProvider) stage.Stage {
	tracer := provider.Tracer("github.com/marquee-ads/marquee/services/gateway")
	propagator := propagation.TraceContext{}
	return func(next stage.Handler) stage.Handler {
		return func(ctx context.Context, call *stage.Call) error {
			ctx = propagator.Extract(ctx, carrier(call.Metadata))
			ctx, span := tracer.Start(ctx, call.Name(), trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(call.Start),
				trace.WithAttributes(
					semconv.ClientAddress(call.Client),
					attribute.String("marquee.door", string(call.Door)),
					attribute.String("marquee.request_id", call.RequestID),
				))
			defer span.End()
			propagator.Inject(ctx, carrier(call.Metadata))
			err := next(ctx, call)
			code := stage.CodeOf(err)
			span.SetAttributes(attribute.String("marquee.code", code.String()))
			if stage.Ours(code) {
				// Without the error's text, which may quote what the caller sent.
				span.SetStatus(codes.Error, code.String())
			}
			return err
		}
	}
}

// carrier is a call's metadata as OpenTelemetry reads and writes it.
type carrier metadata.MD

func (c carrier) Get(key string) string {
	if values := c[key]; len(values) > 0 {
		return values[0]
	}
	return ""
}

func (c carrier) Set(key, value string) { c[key] = []string{value} }

func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for key := range c {
		keys = append(keys, key)
	}
	return keys
}
