package scenario

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/stack"
)

// Media is somebody at the gateways' doors for media, who asks one gateway after the
// other.
type Media struct {
	bases []string
	token string
	turn  int
}

// NewMedia is somebody with an access token, or nobody when it is empty.
func NewMedia(gateways []stack.Gateway, token string) *Media {
	bases, _ := Addresses(gateways)
	return &Media{bases: bases, token: token}
}

// Do sends a request, and returns the answer with all of its body.
func (m *Media) Do(ctx context.Context, t testing.TB, method, path string, body []byte, header map[string]string) (*http.Response, []byte) {
	t.Helper()
	m.turn++
	request, err := http.NewRequestWithContext(ctx, method, m.bases[m.turn%len(m.bases)]+path, bytes.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("Tus-Resumable", "1.0.0")
	if m.token != "" {
		request.Header.Set("Authorization", "Bearer "+m.token)
	}
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

// Name is what contents are called.
func Name(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// Begin begins an upload for an organisation, of so many bytes, saying what they are
// called and, unless it is empty, of which media type they are.
func (m *Media) Begin(ctx context.Context, t testing.TB, organisation string, length int, name, mediaType string) (*http.Response, []byte) {
	t.Helper()
	metadata := "sha256 " + base64.StdEncoding.EncodeToString([]byte(name))
	if mediaType != "" {
		metadata += ",filetype " + base64.StdEncoding.EncodeToString([]byte(mediaType))
	}
	return m.Do(ctx, t, http.MethodPost, "/v1/media/uploads?organisation_id="+organisation, nil, map[string]string{
		"Upload-Length": strconv.Itoa(length), "Upload-Metadata": metadata,
	})
}

// Append sends what comes at an offset of the upload that response began.
func (m *Media) Append(ctx context.Context, t testing.TB, response *http.Response, offset int, part []byte) (*http.Response, []byte) {
	t.Helper()
	upload, err := response.Location()
	require.NoError(t, err)
	return m.Do(ctx, t, http.MethodPatch, upload.Path, part, map[string]string{
		"Content-Type": "application/offset+octet-stream", "Upload-Offset": strconv.Itoa(offset),
	})
}

// Upload uploads contents for an organisation in so many parts, and returns what
// they are called.
func (m *Media) Upload(ctx context.Context, t testing.TB, organisation string, content []byte, parts int) string {
	t.Helper()
	name := Name(content)
	begun, text := m.Begin(ctx, t, organisation, len(content), name, "") //nolint:bodyclose // Do has closed it
	require.Equal(t, http.StatusCreated, begun.StatusCode, "%s", text)
	for i := range parts {
		from, to := len(content)*i/parts, len(content)*(i+1)/parts
		response, text := m.Append(ctx, t, begun, from, content[from:to]) //nolint:bodyclose // Do has closed it
		require.Equal(t, http.StatusNoContent, response.StatusCode, "%s", text)
		require.Equal(t, strconv.Itoa(to), response.Header.Get("Upload-Offset"))
	}
	return name
}
