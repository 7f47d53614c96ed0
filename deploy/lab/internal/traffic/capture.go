package traffic

// Capture is what was seen on a link.
type Capture struct {
	// Ports counts TCP segments with payload by each of their two ports.
	Ports map[int]int `json:"ports"`
	// Readable counts segments in which the marker could be read.
	Readable int `json:"readable"`
}
