// Package media looks into images and videos that were uploaded, draws thumbnails, and
// keeps what is shown with platform/blobs.
package media

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"image"
	"image/png"

	"github.com/marquee-ads/marquee/platform/blobs"
	"github.com/marquee-ads/marquee/services/order"
)

// Store implements order.Media. It is safe for concurrent use.
type Store struct {
	blobs     *blobs.Store
	inspector *Inspector
	fonts     fonts
}

// New looks into what is in a store, and keeps there what is made of it. memory is how
// much looking may take, in bytes; more than DefaultLimits has is not used.
func New(store *blobs.Store, memory int64) (*Store, error) {
	f, err := parseFonts()
	if err != nil {
		return nil, err
	}
	limits := DefaultLimits()
	limits.Memory = min(limits.Memory, memory)
	return &Store{blobs: store, inspector: NewInspector(limits), fonts: f}, nil
}

// Look implements order.Media.
func (s *Store) Look(ctx context.Context, name string) (order.Contents, error) {
	sum, err := blobs.ParseSum(name)
	if err != nil {
		return order.Contents{}, order.ErrMediaNotFound.Because(err)
	}
	content, closer, info, err := s.blobs.Content(ctx, sum)
	if err != nil {
		return order.Contents{}, failure(ctx, err)
	}
	defer closer.Close()
	found, err := s.inspector.Inspect(ctx, content, info.Size, info.MediaType)
	switch {
	case errors.Is(err, order.ErrMediaInvalid):
		return order.Contents{}, err
	case err != nil:
		return order.Contents{}, failure(ctx, err)
	}
	contents := order.Contents{SHA256: name, MediaType: info.MediaType, Width: found.Width, Height: found.Height, Duration: found.Duration}
	if found.Thumbnail != nil {
		if contents.Thumbnail, err = s.putImage(ctx, found.Thumbnail); err != nil {
			return order.Contents{}, err
		}
	}
	return contents, nil
}

// PutText implements order.Media.
func (s *Store) PutText(ctx context.Context, t order.Text) (order.Contents, error) {
	document, name, err := t.Document()
	if err != nil {
		return order.Contents{}, err
	}
	// That it is a text of ours only its name in a playlist tells.
	if err := s.put(ctx, document, "text/plain"); err != nil {
		return order.Contents{}, err
	}
	drawn, err := s.fonts.draw(t)
	if err != nil {
		return order.Contents{}, fmt.Errorf("drawing a text: %w", err)
	}
	small, err := s.putImage(ctx, drawn)
	if err != nil {
		return order.Contents{}, err
	}
	return order.Contents{SHA256: name, MediaType: order.TextType, Thumbnail: small}, nil
}

// putImage keeps an image as a PNG, and returns its SHA-256.
func (s *Store) putImage(ctx context.Context, drawn image.Image) (string, error) {
	var out bytes.Buffer
	if err := png.Encode(&out, drawn); err != nil {
		return "", fmt.Errorf("writing a thumbnail: %w", err)
	}
	return blobs.Sum(sha256.Sum256(out.Bytes())).String(), s.put(ctx, out.Bytes(), "image/png")
}

func (s *Store) put(ctx context.Context, content []byte, mediaType string) error {
	if _, err := s.blobs.Put(ctx, bytes.NewReader(content), blobs.Expect{Sum: sha256.Sum256(content), MediaType: mediaType}); err != nil {
		return failure(ctx, err)
	}
	return nil
}

// failure is what a failure of the store is to callers.
func failure(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, blobs.ErrUnknown):
		return order.ErrMediaNotFound.Because(err)
	case ctx.Err() != nil:
		return fmt.Errorf("at the media store: %w", ctx.Err())
	default:
		return order.ErrMediaUnavailable.Because(err)
	}
}
