package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/stack"
)

// Media are uploaded in parts through one gateway and another, each of which asks
// any instance, and fetched with ranges, as a player goes on with what broke off.
func TestMediaDoor(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	o := newOwner(t, ctx)
	gateways, _, err := stack.Gateways(ctx, the.Cluster().Consul(), 0)
	require.NoError(t, err)
	require.Len(t, gateways, 2)
	turn := 0
	do := func(method, path string, body []byte, header map[string]string) (*http.Response, []byte) {
		t.Helper()
		turn++
		url := "http://" + gateways[turn%2].HTTP + path
		request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
		require.NoError(t, err)
		for name, value := range header {
			request.Header.Set(name, value)
		}
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response, text
	}
	as := func(header map[string]string) map[string]string {
		header["Authorization"], header["Tus-Resumable"] = "Bearer "+o.token, "1.0.0"
		return header
	}

	// Text, larger than a call's body may be, and of no use to a compressor.
	raw := make([]byte, 3<<20)
	_, err = rand.Read(raw)
	require.NoError(t, err)
	content := []byte(base64.StdEncoding.EncodeToString(raw))
	sum := sha256.Sum256(content)
	name := hex.EncodeToString(sum[:])

	response, text := do(http.MethodPost, "/v1/media/uploads?organisation_id="+o.organisation, nil, as(map[string]string{
		"Upload-Length": strconv.Itoa(len(content)), "Upload-Metadata": "sha256 " + base64.StdEncoding.EncodeToString([]byte(name)),
	}))
	require.Equal(t, http.StatusCreated, response.StatusCode, "%s", text)
	upload, err := response.Location()
	require.NoError(t, err)
	const parts = 4
	began := time.Now()
	for i := range parts {
		from, to := len(content)*i/parts, len(content)*(i+1)/parts
		response, text = do(http.MethodPatch, upload.Path, content[from:to], as(map[string]string{
			"Content-Type": "application/offset+octet-stream", "Upload-Offset": strconv.Itoa(from),
		}))
		require.Equal(t, http.StatusNoContent, response.StatusCode, "%s", text)
		require.Equal(t, strconv.Itoa(to), response.Header.Get("Upload-Offset"))
	}
	uploaded := time.Since(began)

	var fetched []byte
	for len(fetched) < len(content) {
		to := min(len(fetched)+1_000_000, len(content)) - 1
		response, text = do(http.MethodGet, "/v1/media/"+name, nil, map[string]string{"Range": fmt.Sprintf("bytes=%d-%d", len(fetched), to)})
		require.Equal(t, http.StatusPartialContent, response.StatusCode, "%s", text)
		require.Equal(t, `"`+name+`"`, response.Header.Get("Etag"))
		fetched = append(fetched, text...)
	}
	require.True(t, bytes.Equal(content, fetched), "what was fetched is not what was uploaded")
	t.Logf("%d bytes in %d parts in %s", len(content), parts, uploaded.Round(time.Millisecond))

	response, _ = do(http.MethodPost, "/v1/media/uploads?organisation_id="+o.organisation, nil, map[string]string{"Tus-Resumable": "1.0.0", "Upload-Length": "1"})
	require.Equal(t, http.StatusUnauthorized, response.StatusCode)
	response, _ = do(http.MethodGet, "/v1/media/"+hex.EncodeToString(make([]byte, 32)), nil, nil)
	require.Equal(t, http.StatusNotFound, response.StatusCode)
}
