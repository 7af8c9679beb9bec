package ingest

import "strings"

// botMarks are parts of user agents, lower case, that no browser of a person has: what robots call themselves,
// libraries that fetch pages, and browsers without a window.
var botMarks = []string{
	"bot", "crawl", "spider", "slurp", "preview", "monitor", "headless", "phantomjs", "selenium", "puppeteer", "playwright",
	"curl/", "wget/", "python-", "aiohttp", "httpx", "go-http-client", "okhttp", "java/", "libwww", "scrapy", "axios", "node-fetch",
}

// botFreeNames are names of devices and browsers of people that hold one of botMarks.
var botFreeNames = strings.NewReplacer("cubot", "")

// IsBot says whether a user agent is a robot's. An empty one is not judged: an edge may leave it out.
func IsBot(userAgent string) bool {
	agent := botFreeNames.Replace(strings.ToLower(userAgent))
	for _, m := range botMarks {
		if strings.Contains(agent, m) {
			return true
		}
	}
	return false
}
