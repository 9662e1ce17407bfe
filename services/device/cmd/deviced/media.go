package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/blobs"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/service"
)

// mediaFlags say what becomes of media.
type mediaFlags struct {
	URL    string `help:"Where media are kept: file:///folder, which all instances share, or s3://bucket?endpoint=https://... Empty: this service has none."`
	Listen string `default:"127.0.0.1:0" help:"Address in the mesh to which gateways pass requests for media on. Port 0 takes a free one."`
}

func (f *mediaFlags) check() error {
	if _, _, err := net.SplitHostPort(f.Listen); err != nil {
		return fmt.Errorf("--media-listen: %q is not an address; use host:port, for example 127.0.0.1:8000", f.Listen)
	}
	return nil
}

const (
	// mediaPort is what gateways know the mesh port of media by.
	mediaPort   = "media"
	mediaPrefix = "/v1/media"

	mediaHeaderTimeout = 5 * time.Second
	mediaIdleTimeout   = 2 * time.Minute
	// abandoned is how long an upload may be left alone.
	abandoned       = 24 * time.Hour
	mediaSweepEvery = time.Hour
)

// addMedia adds the part of the service that keeps media, if it has one.
func addMedia(ctx context.Context, cfg config, svc *service.Service, keys auth.Keys) error {
	if cfg.Media.URL == "" {
		return nil
	}
	log := svc.Log().Named("media")
	store, err := blobs.Open(ctx, cfg.Media.URL, blobs.Limits{})
	if err != nil {
		return fmt.Errorf("--media-url: %w", err)
	}
	uploaders := uploaders{auth.NewVerifier(auth.Issuer, cfg.Environment, keys, nil)}
	door, err := blobs.NewHandler(blobs.Options{Store: store, Authorize: uploaders.authorize, Log: log})
	if err != nil {
		return errors.Join(fmt.Errorf("making the door for media: %w", err), store.Close())
	}
	server := &http.Server{
		Handler: http.StripPrefix(mediaPrefix, door), ReadHeaderTimeout: mediaHeaderTimeout, IdleTimeout: mediaIdleTimeout,
	}
	served := make(chan struct{})
	svc.Add(service.Component{
		Name: "the port of media",
		Start: func(ctx context.Context) error {
			inner, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Media.Listen)
			if err != nil {
				return fmt.Errorf("--media-listen: %w", err)
			}
			address, err := svc.Advertised(inner.Addr())
			if err != nil {
				return errors.Join(err, inner.Close())
			}
			svc.Annotate(mediaPort, address)
			if cfg.OnMedia != nil {
				cfg.OnMedia(inner.Addr().String())
			}
			listener := svc.Mesh().Listener(inner)
			go func() {
				defer close(served)
				if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
					svc.Fail(fmt.Errorf("serving media: %w", err))
				}
			}()
			return nil
		},
		Stop: func(ctx context.Context) error {
			err := server.Shutdown(ctx)
			if err != nil {
				err = fmt.Errorf("requests for media were cut: %w", errors.Join(err, server.Close()))
			}
			<-served
			return errors.Join(err, store.Close())
		},
	})
	svc.AddBackground("sweeping media", func(ctx context.Context) error {
		every := time.NewTicker(mediaSweepEvery)
		defer every.Stop()
		for {
			if n, err := store.Sweep(ctx, time.Now().Add(-abandoned)); err != nil && ctx.Err() == nil {
				log.Warn("sweeping uploads", "error", err)
			} else if n > 0 {
				log.Info("removed abandoned uploads", "uploads", n)
			}
			select {
			case <-every.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return nil
}

// errNoOrganisation refuses an upload that says not for whom it is.
var errNoOrganisation = fault.New(fault.InvalidArgument, "ORGANISATION_MISSING", "say in the query for which organisation it is: ?organisation_id=org_...")

// uploaders are those who may upload: whoever makes or shows something for an
// organisation.
type uploaders struct{ verifier *auth.Verifier }

// authorize returns whose upload it is. For which organisation is asked when it
// begins; from then on it belongs to who began it.
func (u uploaders) authorize(r *http.Request) (owner string, err error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", auth.ErrTokenMissing
	}
	caller, err := u.verifier.Verify(r.Context(), token)
	if err != nil || r.Method != http.MethodPost {
		return caller.ID(), err
	}
	organisation := r.URL.Query().Get("organisation_id")
	if organisation == "" {
		return "", errNoOrganisation
	}
	return caller.ID(), u.verifier.Authorize(caller, organisation, []auth.Role{auth.Owner, auth.Operator, auth.Advertiser})
}
