-- For the doctor: an error for the first command or key of the lock that this user is not permitted.
local commands = 'type get set del exists pttl pexpire time lpush zadd zrem zrank zcard zrange zrangebyscore'
for command in string.gmatch(commands, '%a+') do
    if redis.acl_check_cmd and not redis.acl_check_cmd(command, KEYS[1]) then
        return redis.error_reply('NOPERM ' .. command .. ' ' .. KEYS[1])
    end
end
return 'OK'
