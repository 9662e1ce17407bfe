package server_test

import (
	"crypto/rand"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/platform/pgtest"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/postgrestest"
	"github.com/marquee-ads/marquee/services/device/server"
)

var pg pgtest.Server

func TestMain(m *testing.M) { os.Exit(pg.Main(m)) }

const (
	one     = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	another = "org_01BX5ZZKBKACTAV9WEVGEMMVRZ"
)

// TestSearchDevices looks for displays of all organisations.
func TestSearchDevices(t *testing.T) {
	store, _ := postgrestest.New(t, &pg)
	service := device.New(store, device.DefaultThrottle(), time.Now, rand.Reader)
	s := server.New(service, nil)
	ids, names := map[string]string{}, map[string]string{} // by each other
	create := func(name, organisation, venue string, latitude, longitude float64, width, height int) {
		t.Helper()
		made, err := service.Create(t.Context(), "acc_ada", "request-"+name, organisation, device.Settings{
			Name: name, Place: device.Place{Latitude: latitude, Longitude: longitude}, VenueType: venue, Screen: device.Screen{Width: width, Height: height},
			LoopLength: time.Minute, SlotLength: 10 * time.Second, SlotPrice: device.Price{AmountMinor: 250, Currency: "EUR"}, TimeZone: "Europe/Berlin",
			Hours: []airtime.Opening{{Weekday: 1, Open: 360, Close: 1440}},
		})
		require.NoError(t, err)
		ids[name], names[made.ID] = made.ID, name
	}
	create("munich", one, "transit.airports.gates", 48.35, 11.79, 1080, 1920)
	create("berlin", one, "retail.malls.concourse", 52.52, 13.40, 3840, 2160)
	create("suva", another, "outdoor.billboards.roadside", -18.14, 178.44, 1920, 1080)
	create("apia", another, "transit.ferry", -13.83, -171.76, 1920, 1080)
	create("gone", another, "transit.ferry", 48.35, 11.79, 1920, 1080)
	require.NoError(t, service.Delete(t.Context(), another, ids["gone"]))
	code, _, err := service.CreateClaimCode(t.Context(), one, ids["berlin"])
	require.NoError(t, err)
	_, err = service.Claim(t.Context(), code, "192.0.2.1")
	require.NoError(t, err)

	all := []string{"apia", "berlin", "munich", "suva"}
	pacific := &devicev1.Area{South: -30, West: 170, North: 0, East: -165}
	for name, c := range map[string]struct {
		search *devicev1.SearchDevicesRequest
		want   []string
	}{
		"All":             {&devicev1.SearchDevicesRequest{}, all},
		"IDs":             {&devicev1.SearchDevicesRequest{DeviceIds: []string{ids["munich"], ids["suva"], ids["gone"]}}, []string{"munich", "suva"}},
		"Organisation":    {&devicev1.SearchDevicesRequest{OrganisationId: another}, []string{"apia", "suva"}},
		"Claimed":         {&devicev1.SearchDevicesRequest{State: devicev1.DeviceState_DEVICE_STATE_CLAIMED}, []string{"berlin"}},
		"Unclaimed":       {&devicev1.SearchDevicesRequest{State: devicev1.DeviceState_DEVICE_STATE_UNCLAIMED}, []string{"apia", "munich", "suva"}},
		"Area":            {&devicev1.SearchDevicesRequest{Area: &devicev1.Area{South: 48, West: 11, North: 49, East: 12}}, []string{"munich"}},
		"AcrossThe180th":  {&devicev1.SearchDevicesRequest{Area: pacific}, []string{"apia", "suva"}},
		"WholeEarth":      {&devicev1.SearchDevicesRequest{Area: &devicev1.Area{South: -90, West: -180, North: 90, East: 180}}, all},
		"APoint":          {&devicev1.SearchDevicesRequest{Area: &devicev1.Area{}}, nil},
		"VenueType":       {&devicev1.SearchDevicesRequest{VenueTypes: []string{"transit"}}, []string{"apia", "munich"}},
		"VenueTypes":      {&devicev1.SearchDevicesRequest{VenueTypes: []string{"transit.airports", "outdoor"}}, []string{"munich", "suva"}},
		"HalfAVenueType":  {&devicev1.SearchDevicesRequest{VenueTypes: []string{"trans"}}, nil},
		"Width":           {&devicev1.SearchDevicesRequest{MinWidthPx: 1920}, []string{"apia", "berlin", "suva"}},
		"WidthAndHeight":  {&devicev1.SearchDevicesRequest{MinWidthPx: 1080, MinHeightPx: 1920}, []string{"berlin", "munich"}},
		"SeveralTogether": {&devicev1.SearchDevicesRequest{Area: pacific, OrganisationId: another, VenueTypes: []string{"transit"}}, []string{"apia"}},
		"NoneOfSeveral":   {&devicev1.SearchDevicesRequest{Area: pacific, OrganisationId: one}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var found []string
			c.search.PageSize = 2
			for pages := 0; ; pages++ {
				require.Less(t, pages, len(all), "pages without an end")
				page, err := s.SearchDevices(t.Context(), c.search)
				require.NoError(t, err)
				require.LessOrEqual(t, len(page.GetDevices()), 2)
				for _, d := range page.GetDevices() {
					found = append(found, names[d.GetDeviceId()])
				}
				if c.search.PageToken = page.GetNextPageToken(); c.search.GetPageToken() == "" {
					break
				}
			}
			slices.Sort(found)
			require.Equal(t, c.want, found)
		})
	}
	t.Run("WhatIsToldOfOne", func(t *testing.T) {
		found, err := s.SearchDevices(t.Context(), &devicev1.SearchDevicesRequest{DeviceIds: []string{ids["munich"]}})
		require.NoError(t, err)
		require.Len(t, found.GetDevices(), 1)
		same, err := s.GetDevice(t.Context(), &devicev1.GetDeviceRequest{OrganisationId: one, DeviceId: ids["munich"]})
		require.NoError(t, err)
		require.Equal(t, same.GetDevice().String(), found.GetDevices()[0].String())
		require.Equal(t, one, found.GetDevices()[0].GetOrganisationId())
	})
	t.Run("ErrArea", func(t *testing.T) {
		_, err := s.SearchDevices(t.Context(), &devicev1.SearchDevicesRequest{Area: &devicev1.Area{South: 1}})
		require.ErrorIs(t, err, device.ErrArea)
	})
	t.Run("ErrPageToken", func(t *testing.T) {
		elsewhere, err := s.ListDevices(t.Context(), &devicev1.ListDevicesRequest{OrganisationId: one, PageSize: 1})
		require.NoError(t, err)
		for _, token := range []string{"?", elsewhere.GetNextPageToken()} {
			require.NotEmpty(t, token)
			_, err = s.SearchDevices(t.Context(), &devicev1.SearchDevicesRequest{PageToken: token})
			require.ErrorIs(t, err, paging.ErrTokenInvalid, token)
		}
	})
}
