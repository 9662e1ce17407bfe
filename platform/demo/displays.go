package demo

import (
	"image/color"

	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

// member is an account with an organisation.
type member struct {
	// key is what people call it by, and its file's name begins with.
	key          string
	account      string
	organisation string
	kind         accountv1.OrganisationKind
}

// owner is somebody who owns displays, and what these are.
type owner struct {
	member
	creatives []creative
	displays  []display
}

// display is one, and what it shows.
type display struct {
	name, address       string
	latitude, longitude float64
	venue, zone         string
	width, height       int32
	loop, slot          int32 // seconds
	price               int64 // of a play, in the currency's minor unit
	currency            string
	hours               []*devicev1.OpeningHours
	creatives           []string // ids, in the order of the playlist; each is shown for a slot
}

func (d display) settings() *devicev1.DeviceSettings {
	return &devicev1.DeviceSettings{
		Name:      d.name,
		Place:     &devicev1.Place{Latitude: d.latitude, Longitude: d.longitude, Address: d.address},
		VenueType: d.venue, TimeZone: d.zone,
		Screen:            &devicev1.Screen{WidthPx: d.width, HeightPx: d.height},
		LoopLengthSeconds: d.loop, SlotLengthSeconds: d.slot,
		SlotPrice: &devicev1.Price{AmountMinor: d.price, Currency: d.currency},
		Hours:     d.hours,
	}
}

// items are its playlist, with pictures that players find at any gateway.
func (d display) items(pictures media) []*devicev1.PlaylistItem {
	var all []*devicev1.PlaylistItem
	for _, id := range d.creatives {
		all = append(all, &devicev1.PlaylistItem{
			CreativeId: id, Url: mediaPath + pictures[id].sum, Sha256: pictures[id].sum, MediaType: mediaType, DurationMs: d.slot * 1000,
		})
	}
	return all
}

// opening is from one hour to another, by the clock on the wall; closed at the same.
type opening struct{ from, to int32 }

// week opens at the same hours on all workdays.
func week(workdays, saturday, sunday opening) []*devicev1.OpeningHours {
	var all []*devicev1.OpeningHours
	for day := devicev1.Weekday_WEEKDAY_MONDAY; day <= devicev1.Weekday_WEEKDAY_SUNDAY; day++ {
		hours := workdays
		switch day {
		case devicev1.Weekday_WEEKDAY_SATURDAY:
			hours = saturday
		case devicev1.Weekday_WEEKDAY_SUNDAY:
			hours = sunday
		}
		if hours.from < hours.to {
			all = append(all, &devicev1.OpeningHours{Weekday: day, OpenMinute: hours.from * 60, CloseMinute: hours.to * 60})
		}
	}
	return all
}

// owners are the demo's. Who changes a name here gets another display beside the
// one that has it.
func owners() []owner {
	var (
		always  []*devicev1.OpeningHours
		station = week(opening{5, 24}, opening{5, 24}, opening{6, 24})
		shop    = week(opening{9, 20}, opening{9, 20}, opening{})
		mall    = week(opening{10, 21}, opening{10, 22}, opening{11, 18})
		office  = week(opening{7, 20}, opening{}, opening{})
		evening = week(opening{16, 24}, opening{12, 24}, opening{12, 24})
	)
	rgb := func(r, g, b uint8) color.RGBA { return color.RGBA{R: r, G: g, B: b, A: 255} }
	const (
		berlin, vienna, zurich = "Europe/Berlin", "Europe/Vienna", "Europe/Zurich"
		london, lisbon, dublin = "Europe/London", "Europe/Lisbon", "Europe/Dublin"
		newYork, sydney, tokyo = "America/New_York", "Australia/Sydney", "Asia/Tokyo"
	)
	air, train, bread := "alpine-air", "night-train", "fresh-bread"
	lights, rain, coffee := "harbour-lights", "rain-or-shine", "first-coffee"
	return []owner{
		{
			member: member{"demo", "demo@example.com", "Skyline Media", accountv1.OrganisationKind_ORGANISATION_KIND_DISPLAY_OWNER},
			creatives: []creative{
				{air, "ALPINE AIR", rgb(0, 92, 138), rgb(0, 122, 168)},
				{train, "NIGHT TRAIN", rgb(38, 24, 84), rgb(66, 44, 124)},
				{bread, "FRESH BREAD", rgb(150, 76, 16), rgb(186, 104, 32)},
			},
			displays: []display{
				{"Munich Airport, gate G7", "Terminal 2, 85356 München", 48.3537, 11.7861, "transit.airports.gates", berlin, 1080, 1920, 60, 10, 320, "EUR", always, []string{air, train, bread}},
				{"Munich, Marienplatz platform 2", "Marienplatz 1, 80331 München", 48.1372, 11.5761, "transit.subway.platform", berlin, 1920, 1080, 60, 10, 180, "EUR", station, []string{train, bread}},
				{"Munich, Stachus arcade", "Karlsplatz 5, 80335 München", 48.1391, 11.5658, "retail.malls.concourse", berlin, 1080, 1920, 60, 6, 90, "EUR", mall, []string{bread, air, train}},
				{"Berlin Central Station, hall", "Europaplatz 1, 10557 Berlin", 52.5251, 13.3694, "transit.train_stations.platform", berlin, 3840, 1080, 60, 10, 410, "EUR", always, []string{air, train}},
				{"Berlin, Alexanderplatz", "Alexanderplatz 1, 10178 Berlin", 52.5219, 13.4132, "outdoor.billboards.spectacular", berlin, 1920, 3840, 80, 8, 650, "EUR", always, []string{train, air, bread}},
				{"Hamburg, Landungsbrücken ferry", "St. Pauli Landungsbrücken 4, 20359 Hamburg", 53.5459, 9.9701, "transit.ferry", berlin, 1920, 1080, 60, 10, 120, "EUR", station, []string{air, bread}},
				{"Hamburg, Jungfernstieg shelter", "Jungfernstieg 7, 20354 Hamburg", 53.5533, 9.9925, "outdoor.bus_shelters", berlin, 1080, 1920, 48, 8, 110, "EUR", always, []string{bread, train}},
				{"Vienna, Stephansplatz platform 1", "Stephansplatz 1, 1010 Wien", 48.2084, 16.3725, "transit.subway.platform", vienna, 1920, 1080, 60, 10, 170, "EUR", station, []string{train, bread, air}},
				{"Vienna, Mariahilfer Straße window", "Mariahilfer Straße 38, 1070 Wien", 48.1996, 16.3536, "outdoor.urban_panels", vienna, 1080, 1920, 60, 6, 95, "EUR", shop, []string{bread, air}},
				{"Zurich Central Station, shops", "Bahnhofplatz 15, 8001 Zürich", 47.3779, 8.5403, "retail.malls.food_court", zurich, 1920, 1080, 60, 10, 280, "CHF", station, []string{air, train, bread}},
			},
		},
		{
			member: member{"demo2", "demo2@example.com", "Harbour Screens", accountv1.OrganisationKind_ORGANISATION_KIND_DISPLAY_OWNER},
			creatives: []creative{
				{lights, "HARBOUR LIGHTS", rgb(10, 60, 72), rgb(14, 92, 104)},
				{rain, "RAIN OR SHINE", rgb(64, 72, 84), rgb(214, 150, 20)},
				{coffee, "FIRST COFFEE", rgb(72, 40, 28), rgb(108, 64, 44)},
			},
			displays: []display{
				{"London, Waterloo concourse", "Station Approach, London SE1 8SW", 51.5031, -0.1132, "transit.train_stations.platform", london, 3840, 1080, 60, 10, 520, "GBP", station, []string{lights, rain, coffee}},
				{"London, Canary Wharf lift 3", "1 Canada Square, London E14 5AB", 51.5049, -0.0195, "office_buildings.office_buildings.elevator", london, 1080, 1920, 60, 10, 210, "GBP", office, []string{coffee, rain}},
				{"London, Shoreditch gym", "1 Curtain Road, London EC2A 3JX", 51.5222, -0.0817, "health_beauty.gyms.equipment", london, 1920, 1080, 60, 10, 80, "GBP", evening, []string{rain, coffee}},
				{"Dublin, Grafton Street shop", "60 Grafton Street, Dublin 2", 53.3417, -6.2602, "retail.convenience_store", dublin, 1080, 1920, 60, 6, 70, "EUR", shop, []string{coffee, lights, rain}},
				{"Lisbon, Cais do Sodré ferry", "Rua da Cintura do Porto, 1200-450 Lisboa", 38.7056, -9.1449, "transit.ferry", lisbon, 1920, 1080, 60, 10, 75, "EUR", station, []string{lights, coffee}},
				{"Lisbon, Chiado museum café", "Rua Serpa Pinto 4, 1200-444 Lisboa", 38.7095, -9.1412, "entertainment.recreational.museums_galleries", lisbon, 1920, 1080, 48, 8, 60, "EUR", mall, []string{coffee, rain, lights}},
				{"New York, Bryant Park panel", "1065 6th Avenue, New York, NY 10018", 40.7549, -73.9840, "outdoor.urban_panels", newYork, 1080, 1920, 64, 8, 480, "USD", always, []string{lights, rain}},
				{"New York, Brooklyn cinema lobby", "445 Albee Square West, Brooklyn, NY 11201", 40.6911, -73.9832, "entertainment.movie_theaters.lobby", newYork, 3840, 2160, 60, 10, 260, "USD", evening, []string{rain, lights, coffee}},
				{"Sydney, Circular Quay wharf 5", "Alfred Street, Sydney NSW 2000", -33.8611, 151.2108, "transit.ferry", sydney, 1920, 1080, 60, 10, 310, "AUD", station, []string{lights, coffee}},
				{"Tokyo, Shibuya crossing", "2-2-1 Dogenzaka, Shibuya, Tokyo 150-0043", 35.6595, 139.7005, "outdoor.billboards.spectacular", tokyo, 2160, 3840, 60, 6, 980, "JPY", always, []string{rain, coffee, lights}},
			},
		},
	}
}
