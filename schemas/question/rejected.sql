-- Which events became no label of their own, and why? (Dead letters are kept for 30 days.)
SELECT kind, reason, count() AS events, max(time) AS newest, any(detail) AS example, any(sample) AS sample
FROM rejected
GROUP BY kind, reason
ORDER BY events DESC
