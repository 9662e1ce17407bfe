package service

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"
)

// tracing sends spans to a collector. Without an endpoint it is nil and calls
// pay nothing for it.
type tracing struct {
	provider *sdktrace.TracerProvider
	options  []otelgrpc.Option
}

func newTracing(ctx context.Context, cfg Config) (*tracing, error) {
	if cfg.TracingEndpoint == "" {
		return nil, nil
	}
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(cfg.TracingEndpoint)}
	if loopback(cfg.TracingEndpoint) {
		options = append(options, otlptracegrpc.WithInsecure())
	}
	exporter, err := otlptracegrpc.New(context.WithoutCancel(ctx), options...)
	if err != nil {
		return nil, fmt.Errorf("--tracing-endpoint: %w", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		// The caller decides whether a request is traced; without a caller's
		// decision it is.
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())),
		sdktrace.WithResource(resource.NewWithAttributes(semconv.SchemaURL,
			semconv.ServiceName(cfg.Name),
			semconv.ServiceVersion(Version()),
			semconv.DeploymentEnvironmentNameKey.String(cfg.Environment),
		)),
	)
	return &tracing{
		provider: provider,
		options: []otelgrpc.Option{
			otelgrpc.WithTracerProvider(provider),
			otelgrpc.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
		},
	}, nil
}

// Tracing makes spans for what is not a gRPC server or client of the harness;
// nil when there is no tracing.
func (s *Service) Tracing() trace.TracerProvider {
	if s.tracing == nil {
		return nil
	}
	return s.tracing.provider
}

func (t *tracing) serverHandler() stats.Handler {
	if t == nil {
		return nil
	}
	return otelgrpc.NewServerHandler(t.options...)
}

func (t *tracing) clientHandler() stats.Handler {
	if t == nil {
		return nil
	}
	return otelgrpc.NewClientHandler(t.options...)
}

func (t *tracing) close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return errors.Join(t.provider.ForceFlush(ctx), t.provider.Shutdown(ctx))
}
