-- Gives the holder's own lock its full time again, and a new value: 1, or 0 where it is not the holder's.
local value = redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('GET', KEYS[1])
if not (value and string.find(value, '"token":"' .. ARGV[1] .. '"', 1, true)) then return 0 end
-- A server without memory takes no new value, and still a longer time for the old one.
if value == ARGV[2] then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    return 1
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
-- Outlives the lock, whose time may run out before the command ends; a week, in case that nobody comes back.
if ARGV[4] == '1' then redis.call('SET', KEYS[2], ARGV[2], 'PX', 604800000) end
return 1
