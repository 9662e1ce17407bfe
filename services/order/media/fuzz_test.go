package media_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/media"
)

// fuzz looks into contents: they are refused or are within the limits, and it takes no
// more memory than it may.
func fuzz(t *testing.T, content []byte, mediaType string, most uint64) {
	limits := media.DefaultLimits()
	limits.ImagePixels, limits.FramePixels = 1<<18, 1<<20
	i := media.NewInspector(limits)
	var found media.Found
	var err error
	took := allocated(func() {
		found, err = i.Inspect(t.Context(), bytes.NewReader(content), int64(len(content)), mediaType)
	})
	if took > most {
		t.Fatalf("%d bytes took %d of memory", len(content), took)
	}
	if err != nil {
		if !errors.Is(err, order.ErrMediaInvalid) {
			t.Fatal(err)
		}
		return
	}
	if found.Width < 1 || found.Height < 1 || found.Width > math.MaxInt16 || found.Height > math.MaxInt16 || found.Duration < 0 || found.Duration > limits.VideoLength {
		t.Fatalf("%+v", found)
	}
	if found.Thumbnail != nil {
		if size := found.Thumbnail.Bounds(); size.Empty() || max(size.Dx(), size.Dy()) > media.ThumbnailSide {
			t.Fatal(size)
		}
	}
}

func FuzzImage(f *testing.F) {
	kinds := []string{"image/png", "image/jpeg", "image/gif", "image/webp"}
	for n, mediaType := range kinds[:3] {
		f.Add(uint8(n), encoded(f, mediaType, halves(20, 10)))
	}
	f.Add(uint8(2), animation(f, 3, 20, 10))
	for _, name := range []string{"lossy.webp", "lossless.webp", "alpha.webp", "animated.webp"} {
		f.Add(uint8(3), file(f, name))
	}
	f.Add(uint8(0), file(f, "animated.png"))
	f.Add(uint8(1), held(f, binary.BigEndian, "MM\x00*", 6))
	f.Fuzz(func(t *testing.T, kind uint8, content []byte) {
		// 24 bytes a pixel, the thumbnail, and tables of the decoders.
		fuzz(t, content, kinds[int(kind)%len(kinds)], 24<<18+32<<20+32*uint64(len(content)))
	})
}

func FuzzMP4(f *testing.F) {
	for _, name := range []string{"end.mp4", "front.mp4", "fragments.mp4", "turned.mp4", "sound.mp4"} {
		f.Add(file(f, name))
	}
	f.Fuzz(func(t *testing.T, content []byte) { fuzz(t, content, "video/mp4", 1<<20+64*uint64(len(content))) })
}

func FuzzWebM(f *testing.F) {
	for _, name := range []string{"plain.webm", "live.webm", "sound.webm", "other.mkv"} {
		f.Add(file(f, name))
	}
	f.Fuzz(func(t *testing.T, content []byte) { fuzz(t, content, "video/webm", 1<<20+64*uint64(len(content))) })
}
