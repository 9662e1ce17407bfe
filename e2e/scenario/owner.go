package scenario

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
)

// Owner is somebody who owns an organisation of displays, over REST.
type Owner struct {
	Doors        Doors
	Organisation string
	// Token is good for five minutes; see LogIn.
	Token string

	name string
}

// NewOwner signs up through these doors and makes the organisation.
func NewOwner(ctx context.Context, t testing.TB, doors Doors) *Owner {
	t.Helper()
	o := &Owner{Doors: doors, name: fmt.Sprintf("e2e-displays-%d", time.Now().UnixNano())}
	require.NoError(t, o.Call(ctx, http.MethodPost, "/v1/accounts", map[string]string{"requestId": "sign-up-" + o.name, "name": o.name, "password": Password}, nil))
	require.NoError(t, o.LogIn(ctx))
	var made struct {
		Organisation struct{ OrganisationID string }
	}
	require.NoError(t, o.Call(ctx, http.MethodPost, "/v1/organisations", map[string]string{
		"requestId": "organisation", "name": "Displays", "kind": "ORGANISATION_KIND_DISPLAY_OWNER",
	}, &made))
	o.Organisation = made.Organisation.OrganisationID
	require.NoError(t, o.LogIn(ctx), "for a token that has the role")
	return o
}

// LogIn gets another token, with the roles of now.
func (o *Owner) LogIn(ctx context.Context) error {
	var session struct{ AccessToken string }
	o.Token = ""
	if err := o.Call(ctx, http.MethodPost, "/v1/sessions", map[string]string{"name": o.name, "password": Password}, &session); err != nil {
		return err
	}
	o.Token = session.AccessToken
	return nil
}

// Call calls a method of the REST API, at another gateway when one is not there:
// what makes something has to carry a request_id. body and out are as in JSON, nil
// for none.
func (o *Owner) Call(ctx context.Context, method, path string, body, out any) error {
	if _, err := o.Doors.REST.Do(ctx, load.Request{Method: method, Path: path, Token: o.Token, Body: body, Idempotent: true}, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// On is the path of something below the organisation's devices: "" is all of them,
// "/" and an id is one.
func (o *Owner) On(device string) string {
	return "/v1/organisations/" + o.Organisation + "/devices" + device
}

// Online is how many of the organisation's devices are shown as connected.
func (o *Owner) Online(ctx context.Context) (int, error) {
	online := 0
	for next := ""; ; {
		var page struct {
			Devices []struct {
				Presence struct{ Online bool }
			}
			NextPageToken string
		}
		if err := o.Call(ctx, http.MethodGet, o.On("?pageSize=200&pageToken="+url.QueryEscape(next)), nil, &page); err != nil {
			return 0, err
		}
		for _, device := range page.Devices {
			if device.Presence.Online {
				online++
			}
		}
		if next = page.NextPageToken; next == "" {
			return online, nil
		}
	}
}
