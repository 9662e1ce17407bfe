package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
)

// Media are uploaded in parts through one gateway and another, each of which asks
// any instance, and fetched with ranges, as a player goes on with what broke off.
// What is not what was said of it is refused, and nothing of it can be fetched.
func TestMediaDoor(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	o := newOwner(t, ctx)
	gateways, _ := bothGateways(t, ctx)
	media, anybody := scenario.NewMedia(gateways, o.token), scenario.NewMedia(gateways, "")

	// Text, larger than a call's body may be, and of no use to a compressor.
	raw := make([]byte, 3<<20)
	_, err := rand.Read(raw)
	require.NoError(t, err)
	content := []byte(base64.StdEncoding.EncodeToString(raw))
	const parts = 4
	began := time.Now()
	name := media.Upload(ctx, t, o.organisation, content, parts)
	uploaded := time.Since(began)

	var fetched []byte
	for len(fetched) < len(content) {
		to := min(len(fetched)+1_000_000, len(content)) - 1
		response, text := anybody.Do(ctx, t, http.MethodGet, "/v1/media/"+name, nil, map[string]string{"Range": fmt.Sprintf("bytes=%d-%d", len(fetched), to)})
		require.Equal(t, http.StatusPartialContent, response.StatusCode, "%s", text)
		require.Equal(t, `"`+name+`"`, response.Header.Get("Etag"))
		fetched = append(fetched, text...)
	}
	require.True(t, bytes.Equal(content, fetched), "what was fetched is not what was uploaded")
	t.Logf("%d bytes in %d parts in %s", len(content), parts, uploaded.Round(time.Millisecond))

	refused := func(t *testing.T, response *http.Response, text []byte, status int, reason string) {
		t.Helper()
		var problem struct{ Reason string }
		require.NoError(t, json.Unmarshal(text, &problem), "%s", text)
		require.Equal(t, [2]any{status, reason}, [2]any{response.StatusCode, problem.Reason}, "%s", text)
	}
	t.Run("ErrNobody", func(t *testing.T) {
		response, text := anybody.Begin(ctx, t, o.organisation, 1, name, "")
		refused(t, response, text, http.StatusUnauthorized, "TOKEN_MISSING")
	})
	t.Run("ErrUnknown", func(t *testing.T) {
		response, text := anybody.Do(ctx, t, http.MethodGet, "/v1/media/"+strings.Repeat("0", 64), nil, nil)
		refused(t, response, text, http.StatusNotFound, "BLOB_UNKNOWN")
	})
	page := []byte("<!DOCTYPE html><script>alert(1)</script>" + strings.Repeat(" ", 2000))
	words := []byte(strings.Repeat("words ", 400))
	for lie, c := range map[string]struct {
		content         []byte
		name, mediaType string
		status          int
		reason          string
	}{
		"ErrAboutItsType": {words, scenario.Name(words), "image/png", http.StatusUnprocessableEntity, "MEDIA_TYPE_MISMATCH"},
		"ErrAPage":        {page, scenario.Name(page), "", http.StatusUnsupportedMediaType, "MEDIA_TYPE_UNSUPPORTED"},
		"ErrAPageAsImage": {page, scenario.Name(page), "image/png", http.StatusUnsupportedMediaType, "MEDIA_TYPE_UNSUPPORTED"},
		"ErrAboutItsSum":  {words, scenario.Name(page), "text/plain", http.StatusUnprocessableEntity, "SHA256_MISMATCH"},
	} {
		t.Run(lie, func(t *testing.T) {
			begun, text := media.Begin(ctx, t, o.organisation, len(c.content), c.name, c.mediaType)
			require.Equal(t, http.StatusCreated, begun.StatusCode, "%s", text)
			response, text := media.Append(ctx, t, begun, 0, c.content)
			refused(t, response, text, c.status, c.reason)
			response, text = media.Append(ctx, t, begun, 0, c.content)
			refused(t, response, text, http.StatusNotFound, "UPLOAD_UNKNOWN")
			for _, name := range []string{c.name, scenario.Name(c.content)} {
				response, text = anybody.Do(ctx, t, http.MethodGet, "/v1/media/"+name, nil, nil)
				refused(t, response, text, http.StatusNotFound, "BLOB_UNKNOWN")
			}
		})
	}
	t.Run("ErrLongerThanItSaid", func(t *testing.T) {
		begun, text := media.Begin(ctx, t, o.organisation, len(words), scenario.Name(words), "")
		require.Equal(t, http.StatusCreated, begun.StatusCode, "%s", text)
		response, text := media.Append(ctx, t, begun, 0, append(words, '.'))
		refused(t, response, text, http.StatusRequestEntityTooLarge, "UPLOAD_TOO_LONG")
	})
}
